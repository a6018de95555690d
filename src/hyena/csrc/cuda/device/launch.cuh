// Launching programs on a GPU. Included by the .cu files, each of which instantiates a few programs.
#pragma once

#include <cuda_runtime.h>

#include <mutex>
#include <set>
#include <stdexcept>
#include <string>

#include "block.h"
#include "launch.h"
#include "tuning.h"

namespace hyena::cuda {

// Raises with what(), the description of what was tried.
template <class What>
void check(cudaError_t error, What&& what) {
    if (error != cudaSuccess) throw std::runtime_error("hyena failed: " + what() + ": " + cudaGetErrorString(error));
}

// While it lives, this thread may do in the course of a capture what captures do not see, as loading a kernel at its
// first launch.
class Relaxed {
  public:
    Relaxed() { cudaThreadExchangeStreamCaptureMode(&mode_); }
    ~Relaxed() { cudaThreadExchangeStreamCaptureMode(&mode_); }
    Relaxed(const Relaxed&) = delete;

  private:
    cudaStreamCaptureMode mode_ = cudaStreamCaptureModeRelaxed;
};

template <class Program, int kThreads, int kBlocks>
__global__ void __launch_bounds__(kThreads, kBlocks) run(const __grid_constant__ Program program, int64_t first) {
    extern __shared__ __align__(16) char shared[];
    program(Block{int(blockDim.x)}, shared, first + int64_t(blockIdx.x));
}

template <class Program, int kThreads, int kBlocks, class What>
void launch_as(const What& what, const Program& program, int threads, int64_t shared, const Device& device) {
    const auto kernel = run<Program, kThreads, kBlocks>;
    // This library has its own copy of the runtime, whose current device is not torch's.
    check(cudaSetDevice(device.index), what);
    const Relaxed relaxed;
    if (shared > 48 * 1024) {  // a block gets more only if it is asked for, once for each device
        static std::mutex mutex;
        static std::set<int> asked;
        std::lock_guard<std::mutex> lock(mutex);
        if (asked.count(device.index) == 0) {
            check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(device.limits.shared)),
                  what);
            asked.insert(device.index);
        }
    }
#if defined(HYENA_TUNE)
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout,
                               int(tuned(Choice::kCarveout, cudaSharedmemCarveoutDefault))),
          what);
#endif
    each_launch(program.blocks(), [&](int64_t first, int64_t count) {
        kernel<<<dim3(unsigned(count)), dim3(unsigned(threads)), size_t(shared),
                 static_cast<cudaStream_t>(device.stream)>>>(program, first);
        check(cudaGetLastError(), what);
    });
}

template <class Program>
void launch(const char* name, const Program& program, int threads, int64_t shared, const Device& device) {
    const int64_t blocks = program.blocks();
    if (blocks == 0) return;
    const auto what = [&] {
        return std::string(name) + " of " + std::to_string(blocks) + " blocks of " + std::to_string(threads) +
               " threads with " + std::to_string(shared) + " bytes of shared memory";
    };
    constexpr int kOwnThreads = own_threads<Program>();
    if constexpr (kOwnThreads > 0) {
        launch_as<Program, kOwnThreads, Program::kBlocksTogether>(what, program, threads, shared, device);
        return;
    } else if constexpr (Program::kBlocksTogether > 1) {
        if (threads <= kManyThreads) {
            launch_as<Program, kManyThreads, Program::kBlocksTogether>(what, program, threads, shared, device);
            return;
        }
    }
    if constexpr (kOwnThreads == 0) launch_as<Program, kMaxThreads, 1>(what, program, threads, shared, device);
}

}  // namespace hyena::cuda
