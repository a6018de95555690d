// A GPU's limits, memory and state.
#include <array>
#include <mutex>

#include "launch.cuh"

namespace hyena::cuda {
namespace {

constexpr int kMaxDevices = 64;

void check_device(cudaError_t error, int device) {
    check(error, [&] { return "device " + std::to_string(device); });
}

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
    if (device < 0 || device >= kMaxDevices) throw std::runtime_error("hyena: no device " + std::to_string(device));
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
        int before = 0;
        check_device(cudaGetDevice(&before), device);
        check_device(cudaSetDevice(device), device);
        cudaFuncAttributes attributes;
        const bool runs = cudaFuncGetAttributes(&attributes, run<Nothing, 32, 1>) == cudaSuccess;
        cudaGetLastError();  // a refusal is an answer, not an error to report later
        check_device(cudaSetDevice(before), device);
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

void* permanent_memory(const Device& device, int64_t bytes) {
    check_device(cudaSetDevice(device.index), device.index);
    const Relaxed relaxed;
    void* memory = nullptr;
    if (cudaMalloc(&memory, size_t(bytes)) == cudaSuccess) return memory;
    cudaGetLastError();  // the caller has other memory to try
    return nullptr;
}

void wait_for(const Device& device) {
    check_device(cudaSetDevice(device.index), device.index);
    const Relaxed relaxed;
    check_device(cudaStreamSynchronize(static_cast<cudaStream_t>(device.stream)), device.index);
}

}  // namespace hyena::cuda
