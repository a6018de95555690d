// Launches of programs (structs with blocks() and operator()(block, shared, index)): by a GPU (kernels_*.cu), or as
// loops on the host (emulated.cpp), for the same programs.
#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>

namespace hyena::cuda {

struct Limits {
    int64_t shared;       // bytes of shared memory that a block may have
    int multiprocessors;  // blocks that run at once, at least
};

struct Device {
    int index = 0;
    void* stream = nullptr;
    Limits limits{};
};

// The device's limits; raises std::runtime_error where its state cannot be read.
Limits limits_of(int device);
// Whether there is compiled code that it runs.
bool supported(int device);
// Whether the stream is recording a CUDA graph: then nothing may be kept that this call computes.
bool is_capturing(const Device& device);
void wait_for(const Device& device);
// Zeros in the device's memory, in its stream.
void clear(const Device& device, void* memory, int64_t bytes);
// Memory that is never given back; null where there is none left.
void* permanent_memory(const Device& device, int64_t bytes);

// The most blocks that one launch takes: 2^31 - 1 of them, less where a test of the emulated kernels asks for less.
int64_t blocks_at_once();

// fn(first, count) for each launch of a program of any number of blocks.
template <class Fn>
void each_launch(int64_t blocks, Fn&& fn) {
    for (int64_t first = 0, most = blocks_at_once(); first < blocks; first += most)
        fn(first, std::min(most, blocks - first));
}

// Threads of the only blocks that a program is compiled for; 0 where it takes any number.
template <class Program, class = void>
struct OwnThreads {
    static constexpr int value = 0;
};
template <class Program>
struct OwnThreads<Program, std::void_t<decltype(Program::kOwnThreads)>> {
    static constexpr int value = Program::kOwnThreads;
};
template <class Program>
constexpr int own_threads() {
    return OwnThreads<Program>::value;
}

// Runs every block of a program, in the device's stream. Raises std::runtime_error naming the program where the launch
// fails.
template <class Program>
void launch(const char* name, const Program& program, int threads, int64_t shared, const Device& device);

#define HYENA_INSTANTIATE(...) \
    template void launch<__VA_ARGS__>(const char*, const __VA_ARGS__&, int, int64_t, const Device&);

}  // namespace hyena::cuda
