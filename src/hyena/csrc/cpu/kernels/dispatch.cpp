// The choice of kernels for this machine's processor.

#include <cstdlib>
#include <cstring>

#include "kernels.h"

namespace hyena {
namespace {

const Kernels& choose() {
#if defined(HYENA_HAS_AVX2) || defined(HYENA_HAS_AVX512)
    __builtin_cpu_init();
    // Another value than these asks for nothing; ops/_extension.py warns of it.
    const char* wanted = std::getenv("HYENA_CPU");
    const auto asked_for = [&](const char* name) { return wanted && std::strcmp(wanted, name) == 0; };
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
    if (!avx2 || asked_for("baseline")) return kernels_baseline();
#if defined(HYENA_HAS_AVX512)
    const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
                        __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl");
    if (avx512 && !asked_for("avx2")) return kernels_avx512();
#endif
#if defined(HYENA_HAS_AVX2)
    return kernels_avx2();
#endif
#endif
    return kernels_baseline();
}

}  // namespace

const Kernels& kernels() {
    static const Kernels& chosen = choose();
    return chosen;
}

// On x86-64 with vectors of 32 bytes and more no slower than torch's products, which are MKL's, whoever made the
// processor (docs/kernels.md, CPU). Elsewhere nobody has measured.
bool has_fast_linear() {
#if defined(__x86_64__)
    static const bool fast = std::strcmp(kernels().name, "baseline") != 0;
    return fast;
#else
    return false;
#endif
}

}  // namespace hyena

extern "C" __attribute__((visibility("default"))) const char* hyena_cpu_kernels() { return hyena::kernels().name; }
