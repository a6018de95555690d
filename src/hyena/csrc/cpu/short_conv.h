// The short convolution of one group of channels, forward and backward.
#pragma once

#include "rows.h"

namespace hyena {
namespace {

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
    store(sums, load(sums) + s0.value());
    store(sums + W, load(sums + W) + s1.value());
    store(sums + 2 * W, load(sums + 2 * W) + s2.value());
    store(sums + 3 * W, load(sums + 3 * W) + s3.value());
}

// dz, and sums for dweight and dbias, from the gradient after the short convolution.
//
// `grad[t * step]` is W lanes of that gradient, zero where a position is not kept. `sums` holds K + 1 vectors: taps, then bias.
template <class T, class IO>
void short_conv_backward_span(const Channels<T, IO>& z, const Channels<T, IO>& dz, const Keep& keep, const T* taps, int64_t count,
                              const T* grad, int64_t step, int64_t begin, int64_t end, T* sums) {
    constexpr int W = Simd<T>::W;
    if (count == 3 && !keep.mask) {
        const int64_t inside = end < keep.length - 2 ? end : keep.length - 2;
        three_taps_backward(z, dz, taps, grad, step, begin, inside, sums);
        if (begin < inside) begin = inside;
    }
    for (int64_t t = begin; t < end; ++t) {
        store(sums + count * W, load(sums + count * W) + load(grad + t * step));
        if (!keep[t]) {
            dz.put(t, zero<T>());
            continue;
        }
        const Vec<T> x = z[t];
        Vec<T> sum = zero<T>();
        for (int64_t j = 0; j < count && t + j < keep.length; ++j) {
            const Vec<T> later = load(grad + (t + j) * step);
            const int64_t k = (count - 1 - j) * W;
            sum += load(taps + k) * later;
            store(sums + k, load(sums + k) + later * x);
        }
        dz.put(t, sum);
    }
}

// Adds a group's sums to (channels, taps) and (channels) gradients, of which it is the only writer.
template <class T>
void add_sums(const T* sums, int64_t taps, Group group, T* dweight, T* dbias) {
    constexpr int W = Simd<T>::W;
    for (int lane = 0; lane < group.lanes; ++lane) {
        for (int64_t k = 0; k < taps; ++k) dweight[(group.first + lane) * taps + k] += sums[k * W + lane];
        dbias[group.first + lane] += sums[taps * W + lane];
    }
}

}  // namespace
}  // namespace hyena
