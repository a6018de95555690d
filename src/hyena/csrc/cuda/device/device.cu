// A GPU's limits, memory and state.
#include <dlfcn.h>

#include <array>
#include <cstdio>
#include <mutex>

#include "launch.cuh"

namespace hyena::cuda {
namespace {

constexpr int kMaxDevices = 64;

void check_device(cudaError_t error, int device) {
    check(error, [&] { return "device " + std::to_string(device); });
}

// Leaves the thread in the context in which it found it, also in none: setting the device back would open one on device
// 0, half a gigabyte, for a process that uses another. The driver's own functions, of the library that the runtime has
// loaded.
class Context {
  public:
    Context() {
        void* driver = dlopen("libcuda.so.1", RTLD_LAZY | RTLD_NOLOAD);
        if (driver == nullptr) return;
        const auto get = reinterpret_cast<int (*)(void**)>(dlsym(driver, "cuCtxGetCurrent"));
        set_ = reinterpret_cast<int (*)(void*)>(dlsym(driver, "cuCtxSetCurrent"));
        if (get == nullptr || get(&context_) != 0) set_ = nullptr;
        dlclose(driver);
    }
    ~Context() {
        if (set_ != nullptr) set_(context_);
    }
    Context(const Context&) = delete;

  private:
    int (*set_)(void*) = nullptr;
    void* context_ = nullptr;
};

// The smallest program, to ask whether the driver has code for a device: all are compiled for the same architectures.
struct Nothing {
    __device__ void operator()(const Block&, char*, int64_t) const {}
};

int attribute(cudaDeviceAttr which, int device) {
    int value = 0;
    check_device(cudaDeviceGetAttribute(&value, which, device), device);
    return value;
}

}  // namespace

Limits limits_of(int device) {
    static std::mutex mutex;
    static std::array<Limits, kMaxDevices> known{};
    if (device < 0 || device >= kMaxDevices)
        throw std::runtime_error("hyena failed: no device " + std::to_string(device));
    std::lock_guard<std::mutex> lock(mutex);
    Limits& limits = known[size_t(device)];
    if (limits.multiprocessors == 0)
        limits = {attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, device),
                  attribute(cudaDevAttrMultiProcessorCount, device)};
    return limits;
}

bool supported(int device) {
    // Whether there is code for the device: for its architecture, or such as its driver compiles.
    static std::mutex mutex;
    static std::array<int, kMaxDevices> known{};  // 0: not asked yet
    if (device < 0 || device >= kMaxDevices) return false;
    std::lock_guard<std::mutex> lock(mutex);
    int& answer = known[size_t(device)];
    if (answer == 0) {
        const Relaxed relaxed;
        const Context before;
        check_device(cudaSetDevice(device), device);
        cudaFuncAttributes attributes;
        const bool runs = cudaFuncGetAttributes(&attributes, run<Nothing, 32, 1>) == cudaSuccess;
        cudaGetLastError();  // a refusal is an answer, not an error to report later
        answer = runs ? 1 : -1;
    }
    return answer == 1;
}

int64_t blocks_at_once() { return INT32_MAX; }

bool is_capturing(const Device& device) {
    cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
    check_device(cudaSetDevice(device.index), device.index);
    check_device(cudaStreamIsCapturing(static_cast<cudaStream_t>(device.stream), &status), device.index);
    return status != cudaStreamCaptureStatusNone;
}

void clear(const Device& device, void* memory, int64_t bytes) {
    check_device(cudaSetDevice(device.index), device.index);
    check_device(cudaMemsetAsync(memory, 0, size_t(bytes), static_cast<cudaStream_t>(device.stream)), device.index);
}

void* permanent_memory(const Device& device, int64_t bytes) {
    check_device(cudaSetDevice(device.index), device.index);
    const Relaxed relaxed;
    void* memory = nullptr;
    if (cudaMalloc(&memory, size_t(bytes)) == cudaSuccess) return memory;
    cudaGetLastError();  // the caller has other memory to try
    static std::once_flag said;
    std::call_once(said, [&] {
        std::fprintf(
            stderr,
            "hyena failed: no memory left on device %d for %lld bytes of tables outside torch's allocator, which holds "
            "the rest (torch.cuda.empty_cache() gives back what it does not use): until there is, every call "
            "makes its tables again, which is slower\n",
            device.index, (long long)bytes);
    });
    return nullptr;
}

void wait_for(const Device& device) {
    check_device(cudaSetDevice(device.index), device.index);
    const Relaxed relaxed;
    check_device(cudaStreamSynchronize(static_cast<cudaStream_t>(device.stream)), device.index);
}

}  // namespace hyena::cuda
