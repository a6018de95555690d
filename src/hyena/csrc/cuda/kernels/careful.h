// The outputs of a flagged row (segments.h), each with a scale of its own: that of what came before it.
//
// The same products in the same order as in toeplitz.h, so that an output has the same bits here and there wherever one
// scale would have served: what comes after an output does not change it, however large. An Inf or a NaN is left out of
// the products, and added to the outputs that its taps reach, and to no other. Slow, and rare.
#pragma once

#include "products.h"

namespace hyena::cuda {

struct CarefulRow {
    const Band& band;
    const Products& products;
    const float* h;  // the filter's taps
    float undo;      // the scale of the pairs
    char* memory;    // bytes()

    // Its inputs and sums, and its outputs' scales.
    HYENA_DEVICE int64_t bytes() const { return 4 * int64_t(band.window()) + 5 * int64_t(band.span); }

    // put(w, sums): kChunk outputs from position w of the window on.
    template <class Put>
    HYENA_DEVICE void run(const Block& block, const Sequences& sequences, const Segment& segment, const Operand& value,
                          const Operand& pre, Put&& put) const {
        float *x = reinterpret_cast<float*>(memory), *y = x + band.window();
        auto* scales = reinterpret_cast<uint8_t*>(y + band.span);
        block.each([&](int thread) {
            const Line a(value, sequences, segment.row, segment.channel);
            const Line b(pre, sequences, segment.row, segment.channel);
            for (int w = thread * kChunk; w < band.window(); w += block.threads * kChunk) {
                const int t = band.time_of(segment.at, w);
                float p[kChunk] = {};
                if (t >= 0 && t < segment.row.length) product(a, b, t, p);
                for (int e = 0; e < kChunk; ++e) x[w + e] = p[band.reversed ? kChunk - 1 - e : e];
            }
        });
        block.each([&](int thread) {
            for (int at = thread * kStepDepth; at < band.span; at += block.threads * kStepDepth) {
                int most = 0, s = 0;
                for (int i = 0; i < kStepDepth; ++i) {
                    const int end = band.lead == 0 ? band.before + at + i + 1 : band.window();
                    for (; s < end; ++s)
                        if (is_finite(x[s]) && exponent_of(x[s]) > most) most = exponent_of(x[s]);
                    scales[at + i] = uint8_t(scale_of(most));
                }
            }
        });
        each_warp(block, [&](int warp) {
            for (int at = warp * kStepDepth; at < band.span; at += block.threads / kLanes * kStepDepth)
                add_block(x, scales + at, at, y + at);
        });
        block.each([&](int thread) {
            for (int at = thread * kChunk; at < band.span; at += block.threads * kChunk) {
                const int w = band.before + at;
                float sums[kChunk];
                for (int e = 0; e < kChunk; ++e) sums[e] = y[at + e] * undone(scales[at + e]) * undo;
                const int first = w - band.last, end = w + kChunk + band.lead;
                for (int s = first < 0 ? 0 : first; s < end && s < band.window(); ++s) {
                    if (is_finite(x[s])) continue;
                    for (int e = 0; e < kChunk; ++e) {
                        const int lag = w + e - s;
                        if (lag >= -band.lead && lag <= band.last) sums[e] += h[lag + band.lead] * x[s];
                    }
                }
                put(w, sums);
            }
        });
    }

  private:
    // What stands for x in a row of this scale.
    HYENA_DEVICE float part_of(float x, int scale, bool low) const {
        if (!is_finite(x)) return 0.f;
        const int own = scale_of(exponent_of(x)), down = own - scale;
        if (down > 60) return 0.f;
        const Halves halves(x * power(own));
        return to_float(from_float<Float16>(low ? halves.low : halves.high)) * power(127 - down);
    }

    // 16 outputs from place `at` of the segment on: each of them is a row of its own, and the sum on the diagonal.
    HYENA_DEVICE void add_block(const float* x, const uint8_t* scales, int at, float* y) const {
        const int w = band.before + at;
        Lanes<float, 8> sums;
        each_lane([&](int lane) {
            HYENA_UNROLL
            for (int i = 0; i < 8; ++i) sums.at(lane, i) = 0.f;
        });
        for (int product = 0; product < products.count; ++product) {
            if (products.ends_small(product))
                each_lane([&](int lane) {
                    HYENA_UNROLL
                    for (int i = 0; i < 8; ++i) sums.at(lane, i) *= kLowUndone;
                });
            const uint32_t* pairs = products.pairs_of(product) - band.first_lag();
            const bool low = products.is_low(product);
            for (int s = 0; s < band.window(); s += kStepDepth) {
                const int lag = w - s;
                if (lag - kStepDepth >= band.last || lag + kStepDepth <= -band.lead) continue;
                Lanes<uint32_t, 4> rows;
                Lanes<uint32_t, 3> taps;
                each_lane([&](int lane) {
                    const int g = lane / 4, q = lane % 4 * 2;
                    HYENA_UNROLL
                    for (int i = 0; i < 4; ++i) {
                        const int r = g + i % 2 * 8, from = s + q + i / 2 * 8;
                        float two[2];
                        for (int e = 0; e < 2; ++e) {
                            const bool later = band.lead == 0 && from + e > w + r;
                            two[e] = later ? 0.f : part_of(x[from + e], scales[r], low);
                        }
                        rows.at(lane, i) = packed<Float16>(two[0], two[1]);
                    }
                    HYENA_UNROLL
                    for (int i = 0; i < 3; ++i) taps.at(lane, i) = pairs[lag + g - q + 8 * (i - 1)];
                });
                multiply_add(sums, 0, rows, 0, taps, 1, 0);
                multiply_add(sums, 4, rows, 0, taps, 2, 1);
            }
        }
        each_lane([&](int lane) {
            const int g = lane / 4, e = g - lane % 4 * 2;
            if (e != 0 && e != 1) return;
            y[g] = e == 0 ? sums.at(lane, 0) : sums.at(lane, 1);
            y[g + 8] = e == 0 ? sums.at(lane, 6) : sums.at(lane, 7);
        });
    }
};

}  // namespace hyena::cuda
