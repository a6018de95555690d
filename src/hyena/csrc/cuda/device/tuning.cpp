// hyena_tune: sets a choice of tuning.h, from Python by ctypes. Empty unless built with HYENA_TUNE.
#include "tuning.h"

#if defined(HYENA_TUNE)
#include <array>
#include <atomic>
#include <cstring>

namespace hyena::cuda {
namespace {

struct Known {
    const char* name;
    int64_t least, most, multiple;
    std::atomic<int64_t> value{kUntuned};
};

// In the order of Choice.
std::array<Known, size_t(Choice::kCount)> known{{
    {"rows_each", 1, 1 << 20, 1},
    {"threads", 64, 512, 32},
    {"round_bytes", 1, int64_t(1) << 40, 1},
    {"carveout", 0, 100, 1},
    {"slices", 1, 1 << 20, 1},
    {"radices", 0, 2, 1},
    {"fixed", 0, 1, 1},
}};

}  // namespace

int64_t tuned(Choice which, int64_t otherwise) {
    const int64_t value = known[size_t(which)].value.load(std::memory_order_relaxed);
    return value == kUntuned ? otherwise : value;
}

}  // namespace hyena::cuda

// 0; 1 where there is no such choice, 2 where it does not take the value. -1 leaves the choice to the library again.
extern "C" __attribute__((visibility("default"))) int hyena_tune(const char* name, int64_t value) noexcept {
    for (auto& each : hyena::cuda::known) {
        if (std::strcmp(name, each.name) != 0) continue;
        const bool fits = value >= each.least && value <= each.most && value % each.multiple == 0;
        if (value != hyena::cuda::kUntuned && !fits) return 2;
        each.value = value;
        return 0;
    }
    return 1;
}
#endif
