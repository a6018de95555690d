// One position of convolutions that remember: a short one, a recurrence of modes, a window of inputs.
//
// A decoding step is a few of these on little data, so what counts is that each passes once over its memory, and that
// nothing is made on the way.
#pragma once

#include <type_traits>

#include "../simd/simd.h"
#include "work.h"

namespace hyena {
namespace {

// Multiplications that are not worth waking other threads for.
constexpr int64_t kAlone = int64_t(1) << 17;

// f(b, c0, c1) for blocks of channels of every row; `each` multiplications a channel.
template <class F>
void over_channels(const StepArgs& a, int64_t each, int64_t block, F&& f) {
    const int64_t blocks = (a.channels + block - 1) / block, count = a.batch * blocks;
    const auto task = [&](int64_t i) {
        const int64_t first = i % blocks * block, end = first + block;
        f(i / blocks, first, end < a.channels ? end : a.channels);
    };
    if (a.batch * a.channels * each > kAlone) return run(a.pool, count, [&](int64_t i) { task(i); });
    for (int64_t i = 0; i < count; ++i) task(i);
}

template <class T>
T* row(const Array& x, int64_t b) {
    return x.data ? static_cast<T*>(x.data) + b * x.batch_stride : nullptr;
}

// The inputs of a row behind their gate, and the outputs behind theirs.
template <class T>
struct Gated {
    const T *x, *pre, *post;
    T* y;

    Gated(const StepArgs& a, int64_t b)
        : x(row<T>(a.x, b)), pre(row<T>(a.pre, b)), post(row<T>(a.post, b)), y(row<T>(a.y, b)) {}

    HYENA_INLINE Vec<T> in(int64_t c, int lanes) const {
        const Vec<T> v = load_lanes<T>(x + c, lanes);
        return pre ? load_lanes<T>(pre + c, lanes) * v : v;
    }
    HYENA_INLINE void out(int64_t c, Vec<T> v, int lanes) const {
        store_lanes<T>(y + c, post ? load_lanes<T>(post + c, lanes) * v : v, lanes);
    }
    HYENA_INLINE T in(int64_t c) const { return pre ? pre[c] * x[c] : x[c]; }
    HYENA_INLINE void out(int64_t c, T v) const { y[c] = post ? post[c] * v : v; }
};

template <class T>
struct ShortStep {
    static constexpr int W = Simd<T>::W;
    const ShortStepArgs& a;

    void forward() const {
        over_channels(a, a.filter.taps, 4 * W, [&](int64_t b, int64_t first, int64_t end) {
            for (int64_t c = first; c < end; c += W) step(b, c, int(end - c < W ? end - c : W));
        });
    }

    // Taps of a channel lie side by side; one tap of W channels is gathered.
    HYENA_INLINE void step(int64_t b, int64_t c, int lanes) const {
        const int64_t taps = a.filter.taps;
        const T* weight = static_cast<const T*>(a.filter.weight) + c * taps;
        const T* bias = static_cast<const T*>(a.filter.bias);
        T* memory = row<T>(a.memory, b) + c;
        const Vec<T> x = load_lanes<T>(row<T>(a.x, b) + c, lanes);
        Vec<T> sum = column(weight + taps - 1, taps, lanes) * x;
        for (int64_t i = 0; i < taps - 1; ++i, memory += a.channels) {
            const Vec<T> past = load_lanes<T>(memory, lanes);
            sum += column(weight + i, taps, lanes) * past;
            if (i > 0) store_lanes<T>(memory - a.channels, past, lanes);
        }
        if (taps > 1) store_lanes<T>(memory - a.channels, x, lanes);
        store_lanes<T>(row<T>(a.y, b) + c, bias ? sum + load_lanes<T>(bias + c, lanes) : sum, lanes);
    }

    static HYENA_INLINE Vec<T> column(const T* weight, int64_t step, int lanes) {
#if defined(__AVX512F__)
        if constexpr (sizeof(T) == 4) {
            const __m512i at = _mm512_mullo_epi32(
                _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15), _mm512_set1_epi32(int(step)));
            return (Vec<T>)_mm512_mask_i32gather_ps(_mm512_setzero_ps(), (__mmask16)((1u << lanes) - 1), at, weight, 4);
        }
#endif
        Vec<T> w{};
        for (int k = 0; k < lanes; ++k) w[k] = weight[k * step];
        return w;
    }
};

// Sum of the lanes, in pairs.
template <class T>
HYENA_INLINE T sum_of(Vec<T> v) {
    constexpr int W = Simd<T>::W;
#if defined(__AVX512F__)
    if constexpr (sizeof(T) == 4) return _mm512_reduce_add_ps((__m512)v);
    if constexpr (sizeof(T) == 8) return _mm512_reduce_add_pd((__m512d)v);
#endif
    T part[W];
    store(part, v);
    HYENA_UNROLL
    for (int n = W / 2; n > 0; n /= 2)
        for (int i = 0; i < n; ++i) part[i] += part[i + n];
    return part[0];
}

// Real and imaginary parts in turn, as complex numbers lie in memory.
template <class T>
struct Pairs {
    static constexpr int W = Simd<T>::W;
    using Index = std::conditional_t<sizeof(T) == 4, int32_t, int64_t>;
    typedef Index Indices __attribute__((vector_size(HYENA_BYTES)));

    // Lane k of the result is lane (k & keep) ^ flip of v.
    static HYENA_INLINE Vec<T> permuted(Vec<T> v, int keep, int flip) {
#if defined(__clang__)  // which makes one instruction of the loop
        Vec<T> w;
        HYENA_UNROLL
        for (int k = 0; k < W; ++k) w[k] = v[(k & keep) ^ flip];
        return w;
#else
        Indices index;
        HYENA_UNROLL
        for (int k = 0; k < W; ++k) index[k] = (k & keep) ^ flip;
        return __builtin_shuffle(v, index);
#endif
    }
    static HYENA_INLINE Vec<T> alternating(T even, T odd) {
        Vec<T> w;
        HYENA_UNROLL
        for (int k = 0; k < W; k += 2) w[k] = even, w[k + 1] = odd;
        return w;
    }
    static HYENA_INLINE Vec<T> product(Vec<T> p, Vec<T> s) {
        const Vec<T> turned = permuted(s, ~0, 1) * alternating(-1, 1);
        return permuted(p, ~1, 0) * s + permuted(p, ~1, 1) * turned;
    }
    // Its lanes' sum is the real part of the sum of r s.
    static HYENA_INLINE Vec<T> real_product(Vec<T> r, Vec<T> s) { return r * s * alternating(1, -1); }
    static HYENA_INLINE Vec<T> of_real(T x) { return alternating(x, 0); }
};

template <class T>
struct ModalStep {
    static constexpr int W = Simd<T>::W;
    const ModalStepArgs& a;

    void forward() const {
        const int64_t numbers = a.is_complex ? 2 * a.modes : a.modes;
        over_channels(a, 2 * numbers, 4 * W, [&](int64_t b, int64_t first, int64_t end) {
            const Gated<T> g(a, b);
            for (int64_t c = first; c < end; ++c) {
                const T x = g.in(c);
                const int64_t at = c * numbers;
                T* states = row<T>(a.memory, b) + at;
                const T* pole = static_cast<const T*>(a.pole) + at;
                const T* residue = static_cast<const T*>(a.residue) + at;
                const T y = a.is_complex ? step_complex(numbers, x, states, pole, residue)
                                         : step_real(numbers, x, states, pole, residue);
                g.out(c, y + static_cast<const T*>(a.first)[c] * x);
            }
        });
    }

    static HYENA_INLINE T step_real(int64_t numbers, T x, T* states, const T* pole, const T* residue) {
        Vec<T> sum{};
        for (int64_t k = 0; k < numbers; k += W) {
            const int lanes = int(numbers - k < W ? numbers - k : W);
            const Vec<T> s = load_lanes<T>(states + k, lanes);
            sum += load_lanes<T>(residue + k, lanes) * s;
            store_lanes<T>(states + k, load_lanes<T>(pole + k, lanes) * s + x, lanes);
        }
        return sum_of<T>(sum);
    }

    static HYENA_INLINE T step_complex(int64_t numbers, T x, T* states, const T* pole, const T* residue) {
        Vec<T> sum{};
        const Vec<T> input = Pairs<T>::of_real(x);
        for (int64_t k = 0; k < numbers; k += W) {
            const int lanes = int(numbers - k < W ? numbers - k : W);
            const Vec<T> s = load_lanes<T>(states + k, lanes);
            sum += Pairs<T>::real_product(load_lanes<T>(residue + k, lanes), s);
            store_lanes<T>(states + k, Pairs<T>::product(load_lanes<T>(pole + k, lanes), s) + input, lanes);
        }
        return sum_of<T>(sum);
    }
};

// A window is read from its oldest input on, and each is moved to its next place as it is read.
template <class T>
struct WindowStep {
    static constexpr int W = Simd<T>::W;
    const WindowStepArgs& a;

    void forward() const {
        over_channels(a, a.taps, 4 * W, [&](int64_t b, int64_t first, int64_t end) {
            if (end - first == 4 * W) return step<4>(b, first, W);
            for (int64_t c = first; c < end; c += W) step<1>(b, c, int(end - c < W ? end - c : W));
        });
    }

    // N vectors of channels from c on; all are whole, or there is one.
    template <int N>
    HYENA_INLINE void step(int64_t b, int64_t c, int lanes) const {
        const Gated<T> g(a, b);
        const T* tap = static_cast<const T*>(a.h) + c;
        T* window = row<T>(a.memory, b) + c;
        Vec<T> x[N], sum[N];
        for (int n = 0; n < N; ++n) {
            x[n] = g.in(c + n * W, lanes);
            sum[n] = load_lanes<T>(tap + n * W, lanes) * x[n];
        }
        tap += (a.taps - 1) * a.channels;
        for (int64_t i = 0; i < a.taps - 1; ++i, tap -= a.channels, window += a.channels)
            for (int n = 0; n < N; ++n) {
                const Vec<T> s = load_lanes<T>(window + n * W, lanes);
                sum[n] += load_lanes<T>(tap + n * W, lanes) * s;
                if (i > 0) store_lanes<T>(window - a.channels + n * W, s, lanes);
            }
        for (int n = 0; n < N; ++n) {
            if (a.taps > 1) store_lanes<T>(window - a.channels + n * W, x[n], lanes);
            g.out(c + n * W, sum[n], lanes);
        }
    }
};

}  // namespace
}  // namespace hyena
