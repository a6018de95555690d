// Device code that also runs on the host: without nvcc every kernel is an ordinary function (see block.h), which is how
// kernels are tested on a machine that has no GPU.
//
// The nouns of this room:
// - Block: the threads of a block; block.each(phase) runs a phase in all of them, with a barrier after it (block.h).
// - program: a struct with blocks() and operator()(block, shared memory, index), a kernel and its arguments in one.
// - launch: runs a program, on a GPU (launch.cuh) or as loops on the host (emulated.h).
// - Device, Limits: where, in which stream, and how much shared memory a block may have (launch.h).
// - Cx: a complex number; Storage: the dtype of an array in memory; Int: a constant as an argument.
//
// E.g. a program of 70 blocks, launched with 128 threads and 1 KiB: on a GPU, blocks of 128 threads that meet at the
// end of each phase; on the host, 70 times a KiB of NaN and a loop over 128 threads for each phase, in either order.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <type_traits>
#include <utility>

#if defined(__CUDACC__)
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#define HYENA_DEVICE __host__ __device__ __forceinline__
#define HYENA_APART __host__ __device__ __noinline__
#define HYENA_UNROLL _Pragma("unroll")
#else
#define HYENA_APART inline
#define HYENA_DEVICE inline __attribute__((always_inline))
#define HYENA_UNROLL
#endif

namespace hyena::cuda {

// A constant that may be passed as an argument (std::integral_constant converts on the host only).
template <int N>
struct Int {
    static constexpr int value = N;
    HYENA_DEVICE constexpr operator int() const { return N; }
};

// fn(Int<0>{}), …, fn(Int<N - 1>{}): a loop whose index is a constant.
template <class Fn, int... I>
HYENA_DEVICE void each_of(Fn&& fn, std::integer_sequence<int, I...>) {
    (fn(Int<I>{}), ...);
}
template <int N, class Fn>
HYENA_DEVICE void unrolled(Fn&& fn) {
    each_of(fn, std::make_integer_sequence<int, N>{});
}

struct alignas(8) Cx {
    float re, im;
};

HYENA_DEVICE Cx operator+(Cx a, Cx b) { return {a.re + b.re, a.im + b.im}; }
HYENA_DEVICE Cx operator-(Cx a, Cx b) { return {a.re - b.re, a.im - b.im}; }
HYENA_DEVICE Cx operator*(Cx a, Cx b) { return {a.re * b.re - a.im * b.im, a.re * b.im + a.im * b.re}; }
// a times the conjugate of b.
HYENA_DEVICE Cx times_conj(Cx a, Cx b) { return {a.re * b.re + a.im * b.im, a.im * b.re - a.re * b.im}; }
// Times w (forward), or its conjugate (inverse).
template <bool kInverse>
HYENA_DEVICE Cx twiddled(Cx a, Cx w) {
    return kInverse ? times_conj(a, w) : a * w;
}

// exp(i pi num / den), rounded once.
HYENA_DEVICE Cx half_turns(int64_t num, int64_t den) {
    num %= 2 * den;
    double s, c;
#if defined(__CUDA_ARCH__)
    sincospi((double)num / (double)den, &s, &c);
#else
    const double angle = 3.14159265358979323846 * (double)num / (double)den;
    s = std::sin(angle);
    c = std::cos(angle);
#endif
    return {(float)c, (float)s};
}

// p in device memory, without the compiler knowing how it came about: what is near it is then addressed from it, and
// not from the start of its array each time.
template <class T>
HYENA_DEVICE T* opaque(T* p) {
#if defined(__CUDA_ARCH__)
    size_t at = __cvta_generic_to_global(p);
    asm("" : "+l"(at));
    return static_cast<T*>(__cvta_global_to_generic(at));
#else
    return p;
#endif
}

// n / d for n < 2^31, without a division (Granlund and Montgomery 1994, figure 4.1).
struct FastDiv {
    uint32_t divisor = 1, magic = 1, shift1 = 0, shift2 = 0;

    FastDiv() = default;
    explicit FastDiv(uint32_t d) : divisor(d) {
        uint32_t bits = 0;
        while ((uint64_t(1) << bits) < d) ++bits;
        magic = uint32_t((((uint64_t(1) << bits) - d) << 32) / d + 1);
        shift1 = bits < 1 ? bits : 1;
        shift2 = bits > 1 ? bits - 1 : 0;
    }
    HYENA_DEVICE uint32_t operator()(uint32_t n) const {
#if defined(__CUDA_ARCH__)
        const uint32_t t = __umulhi(magic, n);
#else
        const uint32_t t = uint32_t((uint64_t(magic) * n) >> 32);
#endif
        return (t + ((n - t) >> shift1)) >> shift2;
    }
};

// ---- storage types
// ------------------------------------------------------------------------------------------------------

enum class Storage : int32_t { kFloat, kBFloat16, kFloat16 };

struct BFloat16 {
    uint16_t bits;
};
struct Float16 {
    uint16_t bits;
};

template <class To, class From>
HYENA_DEVICE To bits_as(From from) {
    static_assert(sizeof(To) == sizeof(From));
    To to;
    memcpy(&to, &from, sizeof to);
    return to;
}

HYENA_DEVICE float to_float(float x) { return x; }
HYENA_DEVICE float to_float(BFloat16 x) { return bits_as<float>(uint32_t(x.bits) << 16); }
HYENA_DEVICE float to_float(Float16 x) {
#if defined(__CUDACC__)
    return __half2float(bits_as<__half>(x.bits));
#else
    return bits_as<_Float16>(x.bits);
#endif
}

template <class IO>
HYENA_DEVICE IO from_float(float x);
template <>
HYENA_DEVICE float from_float<float>(float x) {
    return x;
}
template <>
HYENA_DEVICE BFloat16 from_float<BFloat16>(float x) {
#if defined(__CUDA_ARCH__)
    return bits_as<BFloat16>(__float2bfloat16_rn(x));
#else
    const uint32_t u = bits_as<uint32_t>(x);
    if ((u & 0x7fffffffu) > 0x7f800000u) return {uint16_t((u >> 16) | 0x40)};  // stay a NaN
    return {uint16_t((u + 0x7fffu + ((u >> 16) & 1)) >> 16)};                  // to nearest, ties to even
#endif
}
template <>
HYENA_DEVICE Float16 from_float<Float16>(float x) {
#if defined(__CUDACC__)
    return bits_as<Float16>(__float2half_rn(x));
#else
    return bits_as<Float16>(static_cast<_Float16>(x));
#endif
}

// Two values of a 2-byte type in a word, the first in its lower half.
template <class IO>
HYENA_DEVICE void unpack(uint32_t word, float* x) {
    x[0] = to_float(IO{uint16_t(word)});
    x[1] = to_float(IO{uint16_t(word >> 16)});
}
template <>
HYENA_DEVICE void unpack<BFloat16>(uint32_t word, float* x) {
    x[0] = bits_as<float>(word << 16);
    x[1] = bits_as<float>(word & 0xffff0000u);
}
template <class IO>
HYENA_DEVICE uint32_t packed(float first, float second) {
#if defined(__CUDA_ARCH__)
    if constexpr (std::is_same_v<IO, BFloat16>) return bits_as<uint32_t>(__floats2bfloat162_rn(first, second));
    if constexpr (std::is_same_v<IO, Float16>) return bits_as<uint32_t>(__floats2half2_rn(first, second));
#endif
    return from_float<IO>(first).bits | uint32_t(from_float<IO>(second).bits) << 16;
}

HYENA_DEVICE int shift_of(Storage s) { return s == Storage::kFloat ? 2 : 1; }  // a value has 1 << shift bytes

// fn(a value of the C++ type), once for the type that `s` names.
template <class Fn>
HYENA_DEVICE void with_storage(Storage s, Fn&& fn) {
    if (s == Storage::kFloat)
        fn(float{});
    else if (s == Storage::kBFloat16)
        fn(BFloat16{});
    else
        fn(Float16{});
}

}  // namespace hyena::cuda
