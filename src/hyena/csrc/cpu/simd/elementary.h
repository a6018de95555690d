// Sine, cosine and exponential of vectors, to about an eps: Cody and Waite's reduction, then Taylor's polynomials.
//
// An argument x is split into n c + r, with c = pi / 2 or log 2, n an integer and r small. c stands in parts of so few
// bits that the products with n are exact, so r is as good as x is (Cody and Waite 1980).
#pragma once

#include <cmath>

#include "simd.h"

namespace hyena {
namespace {

template <class T>
struct Real;
template <>
struct Real<float> {
    typedef int32_t Int __attribute__((vector_size(HYENA_BYTES)));
    typedef uint32_t Bits __attribute__((vector_size(HYENA_BYTES)));
    static constexpr int kMantissa = 23, kBits = 32;
    // Adding this leaves the nearest integer in the low bits of the mantissa.
    static constexpr float kRound = 0x1.8p23f;
    static constexpr float kHalfPi[3] = {0x1.92p+0f, 0x1.fb4p-12f, 0x1.4442dp-24f};  // 11 bits, 11 bits, the rest
    static constexpr float kFar = 10000;                                             // below 2^13 pi / 2
    static constexpr float kLog2[2] = {0x1.62e4p-1f, 0x1.7f7d1cp-20f};               // 15 bits, the rest
    static constexpr float kLowest = -87, kHighest = 88;                             // exp is a normal number between
    // Powers up to these: the next is below half an eps at pi / 4 and at log(2) / 2.
    static constexpr int kSine = 9, kCosine = 10, kExp = 7;
};
template <>
struct Real<double> {
    typedef int64_t Int __attribute__((vector_size(HYENA_BYTES)));
    typedef uint64_t Bits __attribute__((vector_size(HYENA_BYTES)));
    static constexpr int kMantissa = 52, kBits = 64;
    static constexpr double kRound = 0x1.8p52;
    static constexpr double kHalfPi[3] = {0x1.921fb544p+0, 0x1.0b4611a6p-34,
                                          0x1.3198a2e037073p-69};                   // 33 bits, 33 bits
    static constexpr double kFar = 1000000;                                         // below 2^20 pi / 2
    static constexpr double kLog2[2] = {0x1.62e42fefa3p-1, 0x1.3de6af278ece6p-42};  // 41 bits, the rest
    static constexpr double kLowest = -708, kHighest = 709;
    static constexpr int kSine = 17, kCosine = 18, kExp = 13;
};
template <class T>
using Int = typename Real<T>::Int;
template <class T>
using Bits = typename Real<T>::Bits;  // unsigned: what overflows is not used

template <class T>
constexpr T inverse_factorial(int n) {
    T f = 1;
    for (int i = 2; i <= n; ++i) f *= T(i);
    return T(1) / f;
}

// The sum over k = First, First + Step, … Last of sign^i z^i / k!, z the Step-th power of the variable.
template <class T, int First, int Step, int Last, int Sign>
HYENA_INLINE Vec<T> taylor(Vec<T> z) {
    if constexpr (First >= Last)
        return zero<T>() + inverse_factorial<T>(First);
    else
        return inverse_factorial<T>(First) + T(Sign) * z * taylor<T, First + Step, Step, Last, Sign>(z);
}

// Sines and cosines; true where |x| is so large that they are wrong and must be asked of the C library instead.
template <class T>
HYENA_INLINE Int<T> sine_cosine(Vec<T> x, Vec<T>& sine, Vec<T>& cosine) {
    using R = Real<T>;
    const Vec<T> shifted = x * T(0.63661977236758134308) + R::kRound, n = shifted - R::kRound;
    const Bits<T> quadrant = (Bits<T>)shifted;
    const Vec<T> r = ((x - n * R::kHalfPi[0]) - n * R::kHalfPi[1]) - n * R::kHalfPi[2], z = r * r;
    const Vec<T> s = r - r * z * taylor<T, 3, 2, R::kSine, -1>(z);
    const Vec<T> c = T(1) - (T(0.5) * z - z * z * taylor<T, 4, 2, R::kCosine, -1>(z));
    const Int<T> odd = (Int<T>)((quadrant & 1) != 0);
    sine = (Vec<T>)((Bits<T>)(odd ? c : s) ^ ((quadrant & 2) << (R::kBits - 2)));
    cosine = (Vec<T>)((Bits<T>)(odd ? s : c) ^ (((quadrant + 1) & 2) << (R::kBits - 2)));
    const Vec<T> size = x < T(0) ? -x : x;
    return ~(Int<T>)(size <= R::kFar);  // also where x is no number
}

template <class T>
HYENA_INLINE Vec<T> exponential(Vec<T> x) {
    using R = Real<T>;
    const Vec<T> shifted = x * T(1.44269504088896340736) + R::kRound, n = shifted - R::kRound;
    const Vec<T> r = (x - n * R::kLog2[0]) - n * R::kLog2[1];
    const Vec<T> power = T(1) + (r + r * r * taylor<T, 2, 1, R::kExp, 1>(r));
    const Vec<T> scale = (Vec<T>)(((Bits<T>)shifted << R::kMantissa) + (Bits<T>)(zero<T>() + T(1)));
    const Vec<T> y = power * scale;
    const Vec<T> above = x > R::kHighest ? zero<T>() + T(INFINITY) : y;
    return x < R::kLowest ? zero<T>() : above;
}

// Whether any lane is set.
template <class T>
HYENA_INLINE bool any(Int<T> v) {
    bool found = false;
    for (int i = 0; i < Simd<T>::W; ++i) found |= v[i] != 0;
    return found;
}

}  // namespace
}  // namespace hyena
