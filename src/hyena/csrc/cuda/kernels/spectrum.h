// Spectra of filters and their gradients: hyena::filter_spectrum. Taps are (F, G, lags), lags contiguous.
#pragma once

#include "long_rows.h"

namespace hyena::cuda {

struct Taps {
    float* data = nullptr;
    int64_t lags = 0, points = 0;  // lags 0 … lags - 1, or -(lags - 1) … lags - 1
    bool causal = true;

    HYENA_DEVICE float* lag_zero(int64_t filter) const {
        return causal ? data + filter * lags : data + filter * (2 * lags - 1) + lags - 1;
    }
    // Lag t stands at time t; lag t - P, whose twist is -i times that of t, in the imaginary part.
    HYENA_DEVICE Cx get(int64_t filter, int64_t t) const {
        const float* h = lag_zero(filter);
        return {t < lags ? h[t] : 0.f, !causal && points - t < lags ? -h[t - points] : 0.f};
    }
    HYENA_DEVICE void put(int64_t filter, int64_t t, Cx v) const {
        float* h = lag_zero(filter);
        const float scale = 1.f / float(points);
        if (t < lags) h[t] = v.re * scale;
        if (!causal && points - t < lags) h[t - points] = -v.im * scale;
    }
};

// Points of a spectrum from and to a turning pass.
template <int R>
HYENA_DEVICE void get(Int<R>, const Strided& from, Cx* a) {
    unrolled<R>([&](auto k) { a[k] = from[k]; });
}
template <int R>
HYENA_DEVICE void put(Int<R>, const Strided& to, float scale, const Cx* a) {
    unrolled<R>([&](auto k) { to[k] = {a[k].re * scale, a[k].im * scale}; });
}

// One block a few filters ("sets" of the transform), forward or backward. `filters` counts all of them, F * G.
template <bool kBackward>
struct Spectrum {
    static constexpr int kBlocksTogether = 1;
    Transform transform;
    int64_t filters = 0, room = 0;
    Taps taps;
    Cx* spectra = nullptr;  // (F * G, room)

    int64_t blocks() const { return (filters + transform.sets - 1) / transform.sets; }

    HYENA_DEVICE void operator()(const Block& block, char* shared, int64_t index) const {
        const Transform& t = transform;
        Cx* buffer = reinterpret_cast<Cx*>(shared);
        const int64_t first = index * t.sets;
        const auto own = [&](uint32_t set) { return first + set < filters ? first + set : filters - 1; };
        if constexpr (!kBackward) {
            const float scale = t.scale;
            block.each([&](int thread) {
                for (uint32_t i = uint32_t(thread); i < t.size(); i += uint32_t(block.threads))
                    buffer[t.pad(i)] = taps.get(own(i / t.points), i % t.points);
                // Room beyond the transform is zero.
                for (uint32_t set = 0; set < t.sets; ++set)
                    for (int64_t k = t.points + thread; k < room; k += block.threads)
                        spectra[own(set) * room + k] = {0.f, 0.f};
            });
            first_pass<Ends::kTwisted>(block, t, InBuffer{buffer}, InBuffer{buffer});
            middle_forward(block, t, buffer);
            turning_pass<true, false>(block, t, buffer, [&](uint32_t set) {
                return [scale, counts = first + set < filters, to = spectra + own(set) * room](
                           auto radix, uint32_t index, uint32_t stride, Cx* a) {
                    if (counts) put(radix, Strided(to, index, stride), scale, a);
                };
            });
        } else {
            turning_pass<false, true>(block, t, buffer, [&](uint32_t set) {
                return [from = spectra + own(set) * room](auto radix, uint32_t index, uint32_t stride, Cx* a) {
                    get(radix, Strided(from, index, stride), a);
                };
            });
            middle_inverse(block, t, buffer);
            first_pass_inverse<Ends::kTwisted>(block, t, InBuffer{buffer}, InBuffer{buffer});
            block.each([&](int thread) {
                for (uint32_t i = uint32_t(thread); i < t.size(); i += uint32_t(block.threads))
                    if (first + i / t.points < filters) taps.put(first + i / t.points, i % t.points, buffer[t.pad(i)]);
            });
        }
    }
};

// Long filters: columns of taps (pairs are filters: one row), and rows to or from the spectrum.
template <bool kBackward>
struct SpectrumColumns {
    static constexpr int kBlocksTogether = 1;
    Columns columns;
    Taps taps;

    int64_t blocks() const { return columns.blocks(); }

    HYENA_DEVICE void operator()(const Block& block, char* shared, int64_t index) const {
        Cx* buffer = reinterpret_cast<Cx*>(shared);
        const int64_t pair = index / columns.tiles(), filter = columns.pairs.channel(pair);
        const uint32_t tile = uint32_t(index % columns.tiles());
        if constexpr (kBackward) columns.inverse<Ends::kTwisted>(block, buffer, pair, tile);
        block.each([&](int thread) {
            columns.each_chunk(block, thread, tile, [&](int t, uint32_t at) {
                HYENA_UNROLL
                for (int e = 0; e < kChunk; ++e) {
                    Cx& x = buffer[columns.transform.pad(at) + uint32_t(e)];
                    if constexpr (kBackward)
                        taps.put(filter, t + e, x);
                    else
                        x = taps.get(filter, t + e);
                }
            });
        });
        if constexpr (!kBackward) columns.forward<Ends::kTwisted>(block, buffer, pair, tile);
    }
};

template <bool kBackward>
struct SpectrumRows {
    static constexpr int kBlocksTogether = 1;
    MatrixRows rows;
    Pairs pairs;
    int64_t room = 0;
    Cx *scratch = nullptr, *spectra = nullptr;

    int64_t blocks() const { return pairs.count() * rows.tiles(); }

    HYENA_DEVICE void operator()(const Block& block, char* shared, int64_t index) const {
        const Transform& t = rows.transform;
        Cx* buffer = reinterpret_cast<Cx*>(shared);
        const int64_t pair = index / rows.tiles(), offset = index % rows.tiles() * t.sets * t.points;
        Cx* x = scratch + pair * rows.points + offset;
        Cx* s = spectra + pairs.channel(pair) * room;
        if constexpr (!kBackward) {
            const float scale = 1.f / float(rows.points);
            if (offset == 0)
                block.each([&](int thread) {
                    for (int64_t k = rows.points + thread; k < room; k += block.threads) s[k] = {0.f, 0.f};
                });
            rows.load(block, buffer, x);
            turning_pass<true, false>(block, t, buffer, [&](uint32_t set) {
                return [scale, to = s + offset + set * t.points](auto radix, uint32_t index, uint32_t stride, Cx* a) {
                    put(radix, Strided(to, index, stride), scale, a);
                };
            });
        } else {
            turning_pass<false, true>(block, t, buffer, [&](uint32_t set) {
                return [from = s + offset + set * t.points](auto radix, uint32_t index, uint32_t stride, Cx* a) {
                    get(radix, Strided(from, index, stride), a);
                };
            });
            rows.store(block, buffer, x);
        }
    }
};

}  // namespace hyena::cuda
