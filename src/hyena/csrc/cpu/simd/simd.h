// Vectors of channels: one SIMD register holds the same position of W neighbouring channels.
//
// Written with the compilers' vector extensions, so that one source serves AVX-512, AVX2, SSE2 and NEON; intrinsics
// appear only where those have no spelling (masked loads, half-precision conversion). This header is compiled once for
// each instruction set (HYENA_ISA, HYENA_BYTES), everything inside an unnamed namespace, so that no function built for
// one instruction set can be linked into another's code.
//
// The nouns of this room:
// - W: lanes of a vector; S = 2 W numbers of a complex point (W real parts, then W imaginary ones).
// - Vec: W numbers of arithmetic, float or double; load_as and store_as convert from and to storage.
// - LongSum: a sum with its rounding errors; BlockedSum: the same at a fraction of the cost.
// - Panels: a matrix in strips of B columns (matrices.h).
// - sine_cosine, exponential: of a Vec, to about an eps (elementary.h).
//
// E.g. 20 channels of bfloat16 with AVX2: W = 8, so three groups of 8, 8 and 4 lanes. A group of 8 is one load of 16
// bytes, widened to 8 floats; the one of 4 copies 8 bytes into zeros first (load_lanes), and writes 8 bytes back.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__AVX2__) || defined(__AVX512F__)
#include <immintrin.h>
#endif

#define HYENA_INLINE inline __attribute__((always_inline))
// Loops over the points of a butterfly live in registers, so they must be unrolled, at -O2 too.
#define HYENA_UNROLL _Pragma("GCC unroll 8")
#define HYENA_LAMBDA __attribute__((always_inline))

namespace hyena {
namespace {

// A number that a function's template sees.
template <int N>
struct std_int {
    static constexpr int value = N;
};

template <class T>
struct Simd {
    static constexpr int W = HYENA_BYTES / sizeof(T);  // lanes
    typedef T V __attribute__((vector_size(HYENA_BYTES)));
};
template <class T>
using Vec = typename Simd<T>::V;

// Storage types of 16 bits; arithmetic is always in float or double.
struct BFloat16 {
    uint16_t bits;
};
struct Float16 {
    uint16_t bits;
};

template <class T>
HYENA_INLINE Vec<T> zero() {
    return Vec<T>{};
}

template <class T>
HYENA_INLINE Vec<T> load(const T* p) {
    Vec<T> v;
    std::memcpy(&v, p, sizeof v);
    return v;
}

template <class T>
HYENA_INLINE void store(T* p, Vec<T> v) {
    std::memcpy(p, &v, sizeof v);
}

// ---- conversions between storage and arithmetic -------------------------------------------------------------------

template <class T>
HYENA_INLINE Vec<T> load_as(const T* p) {
    return load(p);
}

typedef uint16_t U16 __attribute__((vector_size(HYENA_BYTES / 2)));
typedef uint32_t U32 __attribute__((vector_size(HYENA_BYTES)));

template <class T>
HYENA_INLINE Vec<T> load_as(const BFloat16* p) {
    static_assert(sizeof(T) == 4, "16-bit storage computes in float");
    U16 h;
    std::memcpy(&h, p, sizeof h);
    U32 w = __builtin_convertvector(h, U32) << 16;
    Vec<T> v;
    std::memcpy(&v, &w, sizeof v);
    return v;
}

template <class T>
HYENA_INLINE void store_as(T* p, Vec<T> v) {
    store(p, v);
}

template <class T>
HYENA_INLINE void store_as(BFloat16* p, Vec<T> v) {
    U32 w;
    std::memcpy(&w, &v, sizeof w);
    // Round to nearest even; a NaN keeps its top bits and is made quiet, since rounding could carry it into infinity.
    U32 rounded = (w + (0x7fffu + ((w >> 16) & 1u))) >> 16;
    U32 nan = (w >> 16) | 0x40u;
    U32 is_nan = (U32)((w & 0x7fffffffu) > 0x7f800000u);
    U16 h = __builtin_convertvector((rounded & ~is_nan) | (nan & is_nan), U16);
    std::memcpy(p, &h, sizeof h);
}

#if defined(__AVX512F__)
template <class T>
HYENA_INLINE Vec<T> load_as(const Float16* p) {
    return (Vec<T>)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p));
}
template <class T>
HYENA_INLINE void store_as(Float16* p, Vec<T> v) {
    _mm256_storeu_si256((__m256i*)p, _mm512_cvtps_ph((__m512)v, _MM_FROUND_TO_NEAREST_INT));
}
#elif defined(__F16C__)
template <class T>
HYENA_INLINE Vec<T> load_as(const Float16* p) {
    return (Vec<T>)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p));
}
template <class T>
HYENA_INLINE void store_as(Float16* p, Vec<T> v) {
    _mm_storeu_si128((__m128i*)p, _mm256_cvtps_ph((__m256)v, _MM_FROUND_TO_NEAREST_INT));
}
#else
HYENA_INLINE float half_to_float(uint16_t h) {
    // A half's exponent and mantissa, shifted into a float's place, are the value times 2^-112; denormals come out
    // right.
    uint32_t body = (uint32_t)(h & 0x7fffu) << 13, sign = (uint32_t)(h & 0x8000u) << 16;
    float f;
    std::memcpy(&f, &body, 4);
    f *= 0x1p112f;
    std::memcpy(&body, &f, 4);
    if ((h & 0x7c00u) == 0x7c00u) body = 0x7f800000u | ((uint32_t)(h & 0x3ffu) << 13);
    body |= sign;
    std::memcpy(&f, &body, 4);
    return f;
}
HYENA_INLINE uint16_t float_to_half(float f) {
    uint32_t w;
    std::memcpy(&w, &f, 4);
    uint32_t sign = (w >> 16) & 0x8000u;
    w &= 0x7fffffffu;
    if (w > 0x7f800000u) return (uint16_t)(sign | 0x7e00u);
    if (w >= 0x47800000u) return (uint16_t)(sign | 0x7c00u);  // 65536 and above
    if (w < 0x38800000u) {                                    // below the smallest normal half: let the FPU round
        float tiny;
        std::memcpy(&tiny, &w, 4);
        tiny += 0.5f;  // a float at 0.5 has its last bit at 2^-24, a half's smallest denormal
        std::memcpy(&w, &tiny, 4);
        return (uint16_t)(sign | (w - 0x3f000000u));
    }
    w += 0xc8000fffu + ((w >> 13) & 1u);  // rebias the exponent by -112, round to nearest even
    return (uint16_t)(sign | (w >> 13));
}
template <class T>
HYENA_INLINE Vec<T> load_as(const Float16* p) {
    Vec<T> v{};
    for (int i = 0; i < Simd<T>::W; ++i) v[i] = half_to_float(p[i].bits);
    return v;
}
template <class T>
HYENA_INLINE void store_as(Float16* p, Vec<T> v) {
    for (int i = 0; i < Simd<T>::W; ++i) p[i].bits = float_to_half(v[i]);
}
#endif

// ---- the last, incomplete group of channels -------------------------------------------------------------------------

// The first `lanes` lanes from memory, zeros in the others; nothing beyond them is touched.
template <class T, class IO>
HYENA_INLINE Vec<T> load_lanes(const IO* p, int lanes) {
    if (__builtin_expect(lanes == Simd<T>::W, 1)) return load_as<T>(p);
#if defined(__AVX512F__)
    if constexpr (sizeof(IO) == 4) return (Vec<T>)_mm512_maskz_loadu_ps((__mmask16)((1u << lanes) - 1), p);
    if constexpr (sizeof(IO) == 8) return (Vec<T>)_mm512_maskz_loadu_pd((__mmask8)((1u << lanes) - 1), p);
#endif
    IO whole[Simd<T>::W] = {};
    std::memcpy(whole, p, lanes * sizeof(IO));
    return load_as<T>(whole);
}

template <class T, class IO>
HYENA_INLINE void store_lanes(IO* p, Vec<T> v, int lanes) {
    if (__builtin_expect(lanes == Simd<T>::W, 1)) return store_as<T>(p, v);
#if defined(__AVX512F__)
    if constexpr (sizeof(IO) == 4) return _mm512_mask_storeu_ps(p, (__mmask16)((1u << lanes) - 1), (__m512)v);
    if constexpr (sizeof(IO) == 8) return _mm512_mask_storeu_pd(p, (__mmask8)((1u << lanes) - 1), (__m512d)v);
#endif
    IO whole[Simd<T>::W];
    store_as<T>(whole, v);
    std::memcpy(p, whole, lanes * sizeof(IO));
}

// A whole line past the caches, where the instruction set has a store for it.
template <class T, class IO>
HYENA_INLINE void stream_lanes(IO* p, Vec<T> v, int lanes) {
#if defined(__AVX512F__)
    if constexpr (sizeof(IO) == sizeof(T))
        if (lanes == Simd<T>::W && reinterpret_cast<uintptr_t>(p) % 64 == 0)
            return _mm512_stream_si512((__m512i*)p, (__m512i)v);
#endif
    store_lanes<T>(p, v, lanes);
}

template <class T>
HYENA_INLINE T sum_lanes(Vec<T> v) {
    T s = 0;
    for (int i = 0; i < Simd<T>::W; ++i) s += v[i];
    return s;
}

// A sum with what its roundings left out (Knuth's two-sum), exact to about an eps however long it is. An infinite sum
// leaves nothing out: the difference of two infinities, which is not a number, is not counted.
template <class T>
struct LongSum {
    Vec<T> total{}, left_out{};
    HYENA_INLINE void add(Vec<T> v) {
        const Vec<T> sum = total + v, added = sum - total;
        const Vec<T> rest = (total - (sum - added)) + (v - added);
        left_out += rest == rest ? rest : zero<T>();
        total = sum;
    }
    HYENA_INLINE Vec<T> value() const { return total + left_out; }
};

// A running sum is as good as that over a few terms, and cheaper; so one long sum takes blocks of them.
constexpr int kSumBlock = 16;

template <class T>
struct BlockedSum {
    LongSum<T> blocks;
    Vec<T> block{};
    int count = 0;
    HYENA_INLINE void add(Vec<T> v) {
        block += v;
        if (++count == kSumBlock) {
            blocks.add(block);
            block = zero<T>();
            count = 0;
        }
    }
    HYENA_INLINE Vec<T> value() const {
        LongSum<T> all = blocks;
        all.add(block);
        return all.value();
    }
};

}  // namespace
}  // namespace hyena
