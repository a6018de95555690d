// The short convolution of one group of channels, forward and backward.
#pragma once

#include "rows.h"

namespace hyena {
namespace {

// dz, and sums for dweight and dbias, from the gradient after the short convolution.
//
// `grad[t * step]` is W lanes of that gradient, zero where a position is not kept. `sums` holds K + 1 vectors: taps, then bias.
template <class T, class IO>
void short_conv_backward_span(const Channels<T, IO>& z, const Channels<T, IO>& dz, const Keep& keep, const T* taps, int64_t count,
                              const T* grad, int64_t step, int64_t begin, int64_t end, T* sums) {
    constexpr int W = Simd<T>::W;
    for (int64_t t = begin; t < end; ++t) {
        Vec<T> here = load(grad + t * step);
        store(sums + count * W, load(sums + count * W) + here);
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
