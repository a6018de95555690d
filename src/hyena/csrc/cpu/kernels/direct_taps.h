// The taps of a direct convolution: laid out in lanes, applied to positions in a buffer, and their gradient.
//
// Sums of several positions (or, for the gradient of the taps, of several lags) are held in registers.
#pragma once

#include "short_conv.h"
#include "spectra.h"

namespace hyena {
namespace {

// Sums at once, as many as hide the latency of the multiplier; a power of two.
constexpr int kDirectSums = 8;

// Filters h (K, G) of lags 0 … K - 1, or two-sided -(K - 1) / 2 … (K - 1) / 2, and d (C), the weight of the input
// itself, or null.
template <class T>
struct DirectTaps {
    static constexpr int W = Simd<T>::W;
    const void *h, *d;
    int64_t taps;
    Blocks<T> blocks;
    int64_t past, future;  // the largest lag, and how far the taps reach ahead

    DirectTaps(const void* h_in, const void* d_in, int64_t count, bool causal, int64_t channels, int64_t filters)
        : h(h_in),
          d(d_in),
          taps(count),
          blocks{channels, filters},
          past(causal ? count - 1 : count / 2),
          future(causal ? 0 : count / 2) {}

    // Numbers that `lay_out` writes, that `fill` writes for a tile and its neighbours, and that the gradient takes.
    int64_t size() const { return (taps + 1) * W; }
    int64_t buffer(int64_t tile) const { return (tile + taps - 1 + kDirectSums) * W; }
    int64_t sums() const { return sums_size(taps, W); }

    // Taps of a group's channels in lanes, lag -future first, and d behind them.
    void lay_out(Group group, T* to) const {
        const int64_t ratio = blocks.ratio(), first = group.first / ratio;
        const T* from = static_cast<const T*>(h) + first;
        const auto filter = [&](int lane) { return (group.first + lane) / ratio - first; };
        if (ratio == 1)
            for (int64_t j = 0; j < taps; ++j) store(to + j * W, load_lanes<T>(from + j * blocks.filters, group.lanes));
        else if (filter(group.lanes - 1) == 0)
            for (int64_t j = 0; j < taps; ++j) store(to + j * W, zero<T>() + from[j * blocks.filters]);
        else {
            std::memset(to, 0, taps * W * sizeof(T));
            for (int lane = 0; lane < group.lanes; ++lane)
                for (int64_t j = 0; j < taps; ++j) to[j * W + lane] = from[j * blocks.filters + filter(lane)];
        }
        store(to + taps * W, d ? load_lanes<T>(static_cast<const T*>(d) + group.first, group.lanes) : zero<T>());
    }

    // Positions [begin, end), zero outside the row; room for the last, incomplete block of sums is zero too.
    template <class Read>
    static HYENA_INLINE void fill(T* buffer, int64_t begin, int64_t end, const Ahead& ahead, Read&& read) {
        for (int64_t t = begin; t < end; ++t, buffer += W) {
            ahead(t + kReadAhead);
            store(buffer, t >= 0 && t < ahead.length ? read(t) : zero<T>());
        }
        for (int i = 0; i < kDirectSums; ++i, buffer += W) store(buffer, zero<T>());
    }

    // The sum over taps of tap j times x at position i +- j (`Sign`), for `count` positions i from `x` on, handed to
    // `put(i, value)`.
    template <int Sign, class Put>
    HYENA_INLINE void convolve(const T* laid_out, const T* x, int64_t count, Put&& put) const {
        for (int64_t first = 0; first < count; first += kDirectSums) {
            Vec<T> sum[kDirectSums] = {};
            for (int64_t j = 0; j < taps; ++j) {
                const Vec<T> tap = load(laid_out + j * W);
                const T* at = x + (first + Sign * j) * W;
                HYENA_UNROLL
                for (int i = 0; i < kDirectSums; ++i) sum[i] += tap * load(at + i * W);
            }
            for (int i = 0; i < kDirectSums && first + i < count; ++i) put(first + i, sum[i]);
        }
    }

    // Adds a tile's sums of gradient times input at every lag, and those for d.
    void add_sums_of(const T* x, const T* gradient, int64_t count, T* to) const {
        for (int64_t t0 = 0; t0 < count; t0 += kSumBlock) {
            const int64_t t1 = t0 + kSumBlock < count ? t0 + kSumBlock : count;
            Vec<T> own = zero<T>();
            for (int64_t t = t0; t < t1; ++t) own += load(gradient + t * W) * load(x + t * W);
            add_to_sum<T>(to, taps, own);
            int64_t j = 0;
            for (; j + kDirectSums <= taps; j += kDirectSums) {
                Vec<T> sum[kDirectSums] = {};
                for (int64_t t = t0; t < t1; ++t) {
                    const Vec<T> g = load(gradient + t * W);
                    HYENA_UNROLL
                    for (int i = 0; i < kDirectSums; ++i) sum[i] += g * load(x + (t + future - j - i) * W);
                }
                for (int i = 0; i < kDirectSums; ++i) add_to_sum<T>(to, j + i, sum[i]);
            }
            for (; j < taps; ++j) {
                Vec<T> sum = zero<T>();
                for (int64_t t = t0; t < t1; ++t) sum += load(gradient + t * W) * load(x + (t + future - j) * W);
                add_to_sum<T>(to, j, sum);
            }
        }
    }

    // A worker's sums into gradients (K, G) and (C) or null: a block of filters has one writer.
    void add_gradients(const T* sums, Group group, void* dh, void* dd) const {
        for (int lane = 0; lane < group.lanes; ++lane) {
            const int64_t channel = group.first + lane, filter = channel / blocks.ratio();
            const auto sum = [&](int64_t k) { return sums[2 * k * W + lane] + sums[(2 * k + 1) * W + lane]; };
            for (int64_t j = 0; j < taps; ++j) static_cast<T*>(dh)[j * blocks.filters + filter] += sum(j);
            if (dd) static_cast<T*>(dd)[channel] += sum(taps);
        }
    }
};

}  // namespace
}  // namespace hyena
