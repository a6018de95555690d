// The short convolution of one group of channels, forward and backward.
#pragma once

#include "rows.h"

namespace hyena {
namespace {

// The sums over positions that make the gradients of a group's taps and of its bias: K + 1 long sums, of two vectors each.
inline int64_t sums_size(int64_t taps, int lanes) { return 2 * (taps + 1) * lanes; }

template <class T>
HYENA_INLINE void add_to_sum(T* sums, int64_t k, Vec<T> v) {
    constexpr int W = Simd<T>::W;
    LongSum<T> sum{load(sums + 2 * k * W), load(sums + (2 * k + 1) * W)};
    sum.add(v);
    store(sums + 2 * k * W, sum.total);
    store(sums + (2 * k + 1) * W, sum.left_out);
}

// The usual three taps, with everything in registers, for positions with two more behind them.
template <class T, class IO>
void three_taps_backward(const Channels<T, IO>& z, const Channels<T, IO>& dz, const T* taps, const T* grad, int64_t step,
                         int64_t begin, int64_t end, T* sums) {
    constexpr int W = Simd<T>::W;
    if (begin >= end) return;
    const Vec<T> w0 = load(taps), w1 = load(taps + W), w2 = load(taps + 2 * W);
    BlockedSum<T> s0, s1, s2, s3;
    Vec<T> now = load(grad + begin * step), next = load(grad + (begin + 1) * step);
    for (int64_t t = begin; t < end; ++t) {
        const Vec<T> after = load(grad + (t + 2) * step), x = z[t];
        dz.put(t, w2 * now + w1 * next + w0 * after);
        s0.add(after * x);
        s1.add(next * x);
        s2.add(now * x);
        s3.add(now);
        now = next;
        next = after;
    }
    add_to_sum<T>(sums, 0, s0.value());
    add_to_sum<T>(sums, 1, s1.value());
    add_to_sum<T>(sums, 2, s2.value());
    add_to_sum<T>(sums, 3, s3.value());
}

// dz, and sums for dweight and dbias, from the gradient after the short convolution.
//
// `grad[t * step]` is W lanes of that gradient, zero where a position is not kept.
template <class T, class IO>
void short_conv_backward_span(const Channels<T, IO>& z, const Channels<T, IO>& dz, const Keep& keep, const T* taps, int64_t count,
                              const T* grad, int64_t step, int64_t begin, int64_t end, T* sums) {
    constexpr int W = Simd<T>::W;
    if (count == 3 && !keep.mask) {
        const int64_t inside = end < keep.length - 2 ? end : keep.length - 2;
        three_taps_backward(z, dz, taps, grad, step, begin, inside, sums);
        if (begin < inside) begin = inside;
    }
    for (int64_t first = begin; first < end; first += kSumBlock) {
        const int64_t last = first + kSumBlock < end ? first + kSumBlock : end;
        Vec<T> bias = zero<T>();
        for (int64_t t = first; t < last; ++t) {
            bias += load(grad + t * step);
            Vec<T> sum = zero<T>();
            if (keep[t])
                for (int64_t j = 0; j < count && t + j < keep.length; ++j)
                    sum += load(taps + (count - 1 - j) * W) * load(grad + (t + j) * step);
            dz.put(t, sum);
        }
        add_to_sum<T>(sums, count, bias);
        for (int64_t j = 0; j < count; ++j) {
            Vec<T> sum = zero<T>();
            for (int64_t t = first; t < last && t + j < keep.length; ++t)
                if (keep[t]) sum += load(grad + (t + j) * step) * z[t];
            add_to_sum<T>(sums, count - 1 - j, sum);
        }
    }
}

// Adds a group's sums to (channels, taps) and (channels) gradients, of which it is the only writer.
template <class T>
void add_sums(const T* sums, int64_t taps, Group group, T* dweight, T* dbias) {
    constexpr int W = Simd<T>::W;
    const auto sum = [&](int64_t k, int lane) { return sums[2 * k * W + lane] + sums[(2 * k + 1) * W + lane]; };
    for (int lane = 0; lane < group.lanes; ++lane) {
        for (int64_t k = 0; k < taps; ++k) dweight[(group.first + lane) * taps + k] += sum(k, lane);
        dbias[group.first + lane] += sum(taps, lane);
    }
}

}  // namespace
}  // namespace hyena
