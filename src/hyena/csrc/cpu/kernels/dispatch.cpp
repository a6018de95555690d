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

// torch's products are MKL's, which gives processors of other makers less than its best. On Intel's own putting the
// weight in order is felt in fewer rows (docs/kernels.md, CPU). Elsewhere nobody has measured.
int64_t fast_linear_rows() {
#if defined(__x86_64__)
    __builtin_cpu_init();
    const bool is_vectorised = std::strcmp(kernels().name, "baseline") != 0;
    static const int64_t rows = !is_vectorised ? 0 : __builtin_cpu_is("amd") ? 256 : 4096;
    return rows;
#else
    return 0;
#endif
}

}  // namespace hyena

extern "C" __attribute__((visibility("default"))) const char* hyena_cpu_kernels() { return hyena::kernels().name; }
