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

template <class T>
using LaneIndex = std::conditional_t<sizeof(T) == 4, int32_t, int64_t>;
template <class T>
struct Lanes {
    typedef LaneIndex<T> Indices __attribute__((vector_size(HYENA_BYTES)));
};
template <class T>
using LaneIndices = typename Lanes<T>::Indices;

// Lane k of the result is lane (k & keep) ^ flip of v.
template <class T>
HYENA_INLINE Vec<T> permuted(Vec<T> v, int keep, int flip) {
    constexpr int W = Simd<T>::W;
#if defined(__clang__)  // which makes one instruction of the loop
    Vec<T> w;
    HYENA_UNROLL
    for (int k = 0; k < W; ++k) w[k] = v[(k & keep) ^ flip];
    return w;
#else
    LaneIndices<T> index;
    HYENA_UNROLL
    for (int k = 0; k < W; ++k) index[k] = (k & keep) ^ flip;
    return __builtin_shuffle(v, index);
#endif
}

// Taps of a channel lie side by side; one tap of W channels, from `weight` on, in lanes.
template <class T>
HYENA_INLINE Vec<T> tap_of(const T* weight, int64_t tap, int64_t taps, int lanes) {
#if defined(__AVX512F__)
    if constexpr (sizeof(T) == 4) {
        const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
        if (taps == 3 && lanes == 16) {  // out of three vectors, which costs less than gathering
            const __m512i at =
                _mm512_add_epi32(_mm512_mullo_epi32(lane, _mm512_set1_epi32(3)), _mm512_set1_epi32(int(tap)));
            const __m512 low = _mm512_permutex2var_ps(_mm512_loadu_ps(weight), at, _mm512_loadu_ps(weight + 16));
            const __mmask16 high = _mm512_cmpge_epi32_mask(at, _mm512_set1_epi32(32));
            return (Vec<T>)_mm512_mask_permutexvar_ps(low, high, at, _mm512_loadu_ps(weight + 32));
        }
        const __m512i at = _mm512_mullo_epi32(lane, _mm512_set1_epi32(int(taps)));
        return (Vec<T>)_mm512_mask_i32gather_ps(_mm512_setzero_ps(), (__mmask16)((1u << lanes) - 1), at, weight + tap,
                                                4);
    }
#endif
    Vec<T> w{};
    for (int k = 0; k < lanes; ++k) w[k] = weight[k * taps + tap];
    return w;
}

// Of W channels from c on: the short convolution of x, whose memory (of `channels`) moves on.
template <class T>
HYENA_INLINE Vec<T> short_step_of(const ShortFilter& filter, const T* x, T* memory, int64_t channels, int64_t c,
                                  int lanes) {
    const int64_t taps = filter.taps;
    const T* weight = static_cast<const T*>(filter.weight) + c * taps;
    const T* bias = static_cast<const T*>(filter.bias);
    const Vec<T> now = load_lanes<T>(x + c, lanes);
    Vec<T> sum = tap_of(weight, taps - 1, taps, lanes) * now;
    if (bias) sum += load_lanes<T>(bias + c, lanes);
    memory += c;
    for (int64_t i = 0; i < taps - 1; ++i, memory += channels) {
        const Vec<T> past = load_lanes<T>(memory, lanes);
        sum += tap_of(weight, i, taps, lanes) * past;
        if (i > 0) store_lanes<T>(memory - channels, past, lanes);
    }
    if (taps > 1) store_lanes<T>(memory - channels, now, lanes);
    return sum;
}

template <class T>
struct ShortStep {
    static constexpr int W = Simd<T>::W;
    const ShortStepArgs& a;

    void forward() const {
        over_channels(a, a.filter.taps, 4 * W, [&](int64_t b, int64_t first, int64_t end) {
            for (int64_t c = first; c < end; c += W) {
                const int lanes = int(end - c < W ? end - c : W);
                const Vec<T> y = short_step_of(a.filter, row<T>(a.x, b), row<T>(a.memory, b), a.channels, c, lanes);
                store_lanes<T>(row<T>(a.y, b) + c, y, lanes);
            }
        });
    }
};

// The inputs of a row behind their gate, and the outputs behind theirs; or what a short convolution makes of a block of
// up to `Most` channels.
template <class T, int Most>
struct Gated {
    static constexpr int W = Simd<T>::W;
    const T *x, *pre, *post;
    T* y;
    int64_t begin = 0;      // the channel that x, pre and post begin with
    T convolved[3 * Most];  // gate behind, gate before, value

    Gated(const StepArgs& a, int64_t b, int64_t first, int64_t end)
        : x(row<T>(a.x, b)), pre(row<T>(a.pre, b)), post(row<T>(a.post, b)), y(row<T>(a.y, b)) {
        if (x) return;
        begin = first;
        for (int64_t part = 0; part < 3; ++part)
            for (int64_t c = first; c < end; c += W)
                store(convolved + part * Most + (c - first),
                      short_step_of(a.short_filter, row<T>(a.z, b), row<T>(a.last, b), 3 * a.channels,
                                    part * a.channels + c, int(end - c < W ? end - c : W)));
        post = convolved;
        pre = convolved + Most;
        x = convolved + 2 * Most;
    }
    Gated(const Gated&) = delete;  // points into itself

    HYENA_INLINE Vec<T> in(int64_t c, int lanes) const {
        const Vec<T> v = load_lanes<T>(x + (c - begin), lanes);
        return pre ? load_lanes<T>(pre + (c - begin), lanes) * v : v;
    }
    HYENA_INLINE void out(int64_t c, Vec<T> v, int lanes) const {
        store_lanes<T>(y + c, post ? load_lanes<T>(post + (c - begin), lanes) * v : v, lanes);
    }
};

// Lane k of the result is lane k of a where k has not this bit, and of b where it has.
template <class T, int Bit>
HYENA_INLINE Vec<T> alternating_lanes(Vec<T> a, Vec<T> b) {
    constexpr int W = Simd<T>::W;
#if defined(__clang__)  // which makes one instruction of the loop
    Vec<T> w;
    HYENA_UNROLL
    for (int k = 0; k < W; ++k) w[k] = k & Bit ? b[k] : a[k];
    return w;
#else
    LaneIndices<T> index;
    HYENA_UNROLL
    for (int k = 0; k < W; ++k) index[k] = k & Bit ? k + W : k;
    return __builtin_shuffle(a, b, index);
#endif
}

// Lane k of rows[0] becomes the sum of the lanes of rows[k], of W rows: pairs of rows share a vector, each in half of
// its lanes, then pairs of such pairs.
template <class T, int Bit = 1>
HYENA_INLINE void add_lanes(Vec<T>* rows) {
    if constexpr (Bit < Simd<T>::W) {
        for (int i = 0; i < Simd<T>::W / 2 / Bit; ++i) {
            const Vec<T> a = rows[2 * i], b = rows[2 * i + 1];
            rows[i] = alternating_lanes<T, Bit>(a, b) + permuted<T>(alternating_lanes<T, Bit>(b, a), ~0, Bit);
        }
        add_lanes<T, 2 * Bit>(rows);
    }
}

// Real and imaginary parts in turn, as complex numbers lie in memory.
template <class T>
struct Pairs {
    static constexpr int W = Simd<T>::W;

    static HYENA_INLINE Vec<T> alternating(T even, T odd) {
        Vec<T> w;
        HYENA_UNROLL
        for (int k = 0; k < W; k += 2) w[k] = even, w[k + 1] = odd;
        return w;
    }
    static HYENA_INLINE Vec<T> product(Vec<T> p, Vec<T> s) {
        const Vec<T> turned = permuted<T>(s, ~0, 1) * alternating(-1, 1);
        return permuted<T>(p, ~1, 0) * s + permuted<T>(p, ~1, 1) * turned;
    }
    // Its lanes' sum is the real part of the sum of r s.
    static HYENA_INLINE Vec<T> real_product(Vec<T> r, Vec<T> s) { return r * s * alternating(1, -1); }
    // Not alternating(x, 0), which would be put together lane by lane.
    static HYENA_INLINE Vec<T> of_real(T x) {
        LaneIndices<T> real;
        HYENA_UNROLL
        for (int k = 0; k < W; k += 2) real[k] = -1, real[k + 1] = 0;
        return (Vec<T>)((LaneIndices<T>)(x - zero<T>()) & real);
    }
};

template <class T>
struct ModalStep {
    static constexpr int W = Simd<T>::W;
    const ModalStepArgs& a;

    void forward() const {
        const int64_t numbers = a.is_complex ? 2 * a.modes : a.modes;
        over_channels(a, 2 * numbers, 4 * W, [&](int64_t b, int64_t first, int64_t end) {
            const Gated<T, 4 * W> g(a, b, first, end);
            for (int64_t c = first; c < end; c += W) {
                const int lanes = int(end - c < W ? end - c : W);
                const Vec<T> x = g.in(c, lanes);
                Vec<T> of_channel[W] = {};
                T each[W];
                store(each, x);
                for (int i = 0; i < lanes; ++i) {
                    const int64_t at = (c + i) * numbers;
                    T* states = row<T>(a.memory, b) + at;
                    const T* pole = static_cast<const T*>(a.pole) + at;
                    const T* residue = static_cast<const T*>(a.residue) + at;
                    of_channel[i] = a.is_complex ? step_complex(numbers, each[i], states, pole, residue)
                                                 : step_real(numbers, each[i], states, pole, residue);
                }
                const Vec<T> own = load_lanes<T>(static_cast<const T*>(a.first) + c, lanes);
                add_lanes<T>(of_channel);
                g.out(c, of_channel[0] + own * x, lanes);
            }
        });
    }

    static HYENA_INLINE Vec<T> step_real(int64_t numbers, T x, T* states, const T* pole, const T* residue) {
        Vec<T> sum{};
        for (int64_t k = 0; k < numbers; k += W) {
            const int lanes = int(numbers - k < W ? numbers - k : W);
            const Vec<T> s = load_lanes<T>(states + k, lanes);
            sum += load_lanes<T>(residue + k, lanes) * s;
            store_lanes<T>(states + k, load_lanes<T>(pole + k, lanes) * s + x, lanes);
        }
        return sum;
    }

    static HYENA_INLINE Vec<T> step_complex(int64_t numbers, T x, T* states, const T* pole, const T* residue) {
        Vec<T> sum{};
        const Vec<T> input = Pairs<T>::of_real(x);
        for (int64_t k = 0; k < numbers; k += W) {
            const int lanes = int(numbers - k < W ? numbers - k : W);
            const Vec<T> s = load_lanes<T>(states + k, lanes);
            sum += Pairs<T>::real_product(load_lanes<T>(residue + k, lanes), s);
            store_lanes<T>(states + k, Pairs<T>::product(load_lanes<T>(pole + k, lanes), s) + input, lanes);
        }
        return sum;
    }
};

// A window is read from its oldest input on, and each is moved to its next place as it is read.
template <class T>
struct WindowStep {
    static constexpr int W = Simd<T>::W, N = 8;
    using In = Gated<T, N * W>;
    const WindowStepArgs& a;

    void forward() const {
        over_channels(a, a.taps, N * W, [&](int64_t b, int64_t first, int64_t end) {
            const In g(a, b, first, end);
            if (end - first == N * W) return step<N>(g, b, first, W);
            for (int64_t c = first; c < end; c += W) step<1>(g, b, c, int(end - c < W ? end - c : W));
        });
    }

    // M vectors of channels from c on; all are whole, or there is one.
    template <int M>
    HYENA_INLINE void step(const In& g, int64_t b, int64_t c, int lanes) const {
        const T* tap = static_cast<const T*>(a.h) + c;
        T* window = row<T>(a.memory, b) + c;
        Vec<T> x[M], sum[M];
        for (int n = 0; n < M; ++n) {
            x[n] = g.in(c + n * W, lanes);
            sum[n] = load_lanes<T>(tap + n * W, lanes) * x[n];
        }
        tap += (a.taps - 1) * a.channels;
        for (int64_t i = 0; i < a.taps - 1; ++i, tap -= a.channels, window += a.channels)
            for (int n = 0; n < M; ++n) {
                const Vec<T> s = load_lanes<T>(window + n * W, lanes);
                sum[n] += load_lanes<T>(tap + n * W, lanes) * s;
                if (i > 0) store_lanes<T>(window - a.channels + n * W, s, lanes);
            }
        for (int n = 0; n < M; ++n) {
            if (a.taps > 1) store_lanes<T>(window - a.channels + n * W, x[n], lanes);
            g.out(c + n * W, sum[n], lanes);
        }
    }
};

}  // namespace
}  // namespace hyena
