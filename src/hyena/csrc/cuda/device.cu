// What the kernels ask of a device.
#include <array>
#include <mutex>

#include "launch.cuh"

namespace hyena::cuda {
namespace {

int attribute(cudaDeviceAttr which, int device) {
    int value = 0;
    check(cudaDeviceGetAttribute(&value, which, device), "device " + std::to_string(device));
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
    check(cudaSetDevice(device.index), "device " + std::to_string(device.index));
    check(cudaStreamIsCapturing(static_cast<cudaStream_t>(device.stream), &status), "the current stream");
    return status != cudaStreamCaptureStatusNone;
}

void wait_for(const Device& device) {
    check(cudaSetDevice(device.index), "device " + std::to_string(device.index));
    check(cudaStreamSynchronize(static_cast<cudaStream_t>(device.stream)), "the current stream");
}

}  // namespace hyena::cuda
