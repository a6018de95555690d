// Launching programs on the host: blocks one after the other, threads of a block in a loop (see emulated.cpp).
#pragma once

#include <limits>
#include <stdexcept>
#include <string>
#include <vector>

#include "block.h"
#include "launch.h"

namespace hyena::cuda {

// The environment variable `name` as a number.
int64_t setting(const char* name, int64_t otherwise);

// Writes a launch down, where that is asked for.
void note_launch(const char* name, int64_t blocks, int threads, int64_t shared);

template <class Program>
void launch(const char* name, const Program& program, int threads, int64_t shared, const Device& device) {
    if (shared > device.limits.shared)
        throw std::runtime_error(std::string("hyena failed: ") + name + " asks for " + std::to_string(shared) +
                                 " bytes of shared memory");
    note_launch(name, program.blocks(), threads, shared);
    std::vector<float> memory(size_t(shared) / 4 + 4);
    const int64_t order = setting("HYENA_EMULATED_ORDER", 0);
    each_launch(program.blocks(), [&](int64_t first, int64_t count) {
        for (int64_t i = 0; i < count; ++i) {
            // A block must read only what it wrote, and find nothing that another left behind.
            for (float& x : memory) x = std::numeric_limits<float>::quiet_NaN();
            program(Block{threads, (i + order) % 2 == 1}, reinterpret_cast<char*>(memory.data()), first + i);
        }
    });
}

}  // namespace hyena::cuda
