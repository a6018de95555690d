// The CUDA kernels on the host: blocks one after the other, threads of a block in a loop. Slow, and exact: for tests on machines
// without a GPU (CMake option HYENA_EMULATE_CUDA; tests/csrc/cuda_without_gpu.sh).
//
// HYENA_EMULATED_SHARED: shared memory of a block, in bytes; little of it makes short rows split, as long ones do on a GPU.
// HYENA_EMULATED_ORDER=1: threads run in the other order, in which a race shows that the first one hid.
// HYENA_EMULATED_BLOCKS: blocks that one launch takes, 2^31 - 1 as on a GPU unless named.
#include <algorithm>
#include <cstdlib>
#include <limits>
#include <stdexcept>
#include <string>
#include <vector>

#include "launch.h"

namespace hyena::cuda {

namespace {

int64_t setting(const char* name, int64_t otherwise) {
    const char* value = std::getenv(name);
    return value == nullptr ? otherwise : std::atoll(value);
}

}  // namespace

Limits limits_of(int) { return {setting("HYENA_EMULATED_SHARED", 32 * 1024), 2}; }
bool supported(int) { return true; }
int64_t blocks_at_once() { return std::max<int64_t>(1, setting("HYENA_EMULATED_BLOCKS", INT32_MAX)); }
bool is_capturing(const Device&) { return false; }
void wait_for(const Device&) {}
void* memory_for_good(const Device&, int64_t bytes) { return std::malloc(size_t(bytes)); }

template <class Program>
void launch(const char* name, const Program& program, int threads, int64_t shared, const Device& device) {
    if (shared > device.limits.shared)
        throw std::runtime_error(std::string("hyena: ") + name + " asks for " + std::to_string(shared) + " bytes of shared memory");
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

HYENA_CONVOLVE_PROGRAMS(HYENA_INSTANTIATE)
HYENA_BACKWARD_PROGRAMS(HYENA_INSTANTIATE)
HYENA_SPLIT_PROGRAMS(HYENA_INSTANTIATE)
HYENA_SPECTRUM_PROGRAMS(HYENA_INSTANTIATE)
HYENA_ELEMENTWISE_PROGRAMS(HYENA_INSTANTIATE)

}  // namespace hyena::cuda

extern "C" __attribute__((visibility("default"))) const char* hyena_cpu_kernels() { return "emulated CUDA"; }
