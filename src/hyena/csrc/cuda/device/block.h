// A block of threads, as the kernels see it: a sequence of phases with a barrier after each.
//
//     block.each([&](int thread) { … });
//
// runs a phase in every thread and waits for all of them. What one thread writes, others may read in a later phase,
// never in the same one: so the order of threads inside a phase does not matter, and on the host a block is a loop over
// its threads. Running that loop in different orders finds the races that a GPU would show now and then.
#pragma once

#include "portable.h"

namespace hyena::cuda {

// Threads of the largest blocks, with 128 registers each; and of those that share a multiprocessor, of which a program
// may ask the compiler for room for `kBlocksTogether`.
#ifndef HYENA_MANY_THREADS
#define HYENA_MANY_THREADS 256
#endif
constexpr int kMaxThreads = 512, kManyThreads = HYENA_MANY_THREADS;

struct Block {
    int threads;
#if !defined(__CUDACC__)
    bool backwards = false;
#endif

    template <class Phase>
    HYENA_DEVICE void each(Phase&& phase) const {
#if defined(__CUDA_ARCH__)
        phase(int(threadIdx.x));
        __syncthreads();
#elif defined(__CUDACC__)
        (void)phase;  // nvcc's host pass: never run
#else
        for (int i = 0; i < threads; ++i) phase(backwards ? threads - 1 - i : i);
#endif
    }
};

}  // namespace hyena::cuda
