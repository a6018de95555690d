// The CUDA kernels on the host: blocks one after the other, threads of a block in a loop. Slow, and exact: for tests on
// machines without a GPU (CMake option HYENA_EMULATE_CUDA; tests/csrc/cuda_without_gpu.sh).
//
// HYENA_EMULATED_SHARED: shared memory of a block, in bytes; little of it makes short rows split, as long ones do on a
// GPU. HYENA_EMULATED_ORDER=1: threads run in the other order, in which a race shows that the first one hid.
// HYENA_EMULATED_BLOCKS: blocks that one launch takes, 2^31 - 1 as on a GPU unless named. HYENA_EMULATED_LAUNCHES: a
// file to which every launch adds a line with its blocks, threads, bytes of shared memory and name.
#include "emulated.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <fstream>

namespace hyena::cuda {

int64_t setting(const char* name, int64_t otherwise) {
    const char* value = std::getenv(name);
    return value == nullptr ? otherwise : std::atoll(value);
}

void note_launch(const char* name, int64_t blocks, int threads, int64_t shared) {
    const char* path = std::getenv("HYENA_EMULATED_LAUNCHES");
    if (path != nullptr && *path != '\0')
        std::ofstream(path, std::ios::app) << blocks << ' ' << threads << ' ' << shared << ' ' << name << '\n';
}

Limits limits_of(int) { return {setting("HYENA_EMULATED_SHARED", 32 * 1024), 2}; }
bool supported(int) { return true; }
int64_t blocks_at_once() { return std::max<int64_t>(1, setting("HYENA_EMULATED_BLOCKS", INT32_MAX)); }
bool is_capturing(const Device&) { return false; }
void wait_for(const Device&) {}
void clear(const Device&, void* memory, int64_t bytes) { std::memset(memory, 0, size_t(bytes)); }
void* permanent_memory(const Device&, int64_t bytes) { return std::malloc(size_t(bytes)); }

}  // namespace hyena::cuda
