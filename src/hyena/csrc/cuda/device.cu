// What the kernels ask of a device.
#include <array>
#include <mutex>

#include "launch.cuh"

namespace hyena::cuda {
namespace {

void check_device(cudaError_t error, int device) {
    check(error, [&] { return "device " + std::to_string(device); });
}

int attribute(cudaDeviceAttr which, int device) {
    int value = 0;
    check_device(cudaDeviceGetAttribute(&value, which, device), device);
    return value;
}

}  // namespace

Limits limits_of(int device) {
    constexpr int kMaxDevices = 64;
    static std::mutex mutex;
    static std::array<Limits, kMaxDevices> known{};
    if (device < 0 || device >= kMaxDevices) throw std::runtime_error("hyena: no device " + std::to_string(device));
    std::lock_guard<std::mutex> lock(mutex);
    Limits& limits = known[size_t(device)];
    if (limits.multiprocessors == 0)
        limits = {attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, device), attribute(cudaDevAttrMultiProcessorCount, device)};
    return limits;
}

bool supported(int device) { return attribute(cudaDevAttrComputeCapabilityMajor, device) >= 8; }

bool is_capturing(const Device& device) {
    cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
    check_device(cudaSetDevice(device.index), device.index);
    check_device(cudaStreamIsCapturing(static_cast<cudaStream_t>(device.stream), &status), device.index);
    return status != cudaStreamCaptureStatusNone;
}

void wait_for(const Device& device) {
    check_device(cudaSetDevice(device.index), device.index);
    check_device(cudaStreamSynchronize(static_cast<cudaStream_t>(device.stream)), device.index);
}

}  // namespace hyena::cuda
