// The gradient of a filter's taps, as products of matrices on tensor cores whose inner dimension is the rows.
//
// With 16 positions of the gradient g as a tile and 16 of the input p as another, d tiles before it, g' p is a matrix
// of 16 x 16 whose diagonals belong to lags 16 d - 15 … 16 d + 15. A warp adds up the matrices of kDifferences
// neighbouring d over all tiles of g, so that a tile of p serves all of them once it is loaded; then the diagonals are
// added. Rows of a block share a scale; the operands' rounding to fp16 is the error of the result.
#pragma once

#include "plain.h"
#include "products.h"

namespace hyena::cuda {

// Sums over a block's rows: (blocks of a filter, filters, taps).
struct ToeplitzGradientArguments {
    static constexpr int kMaxWarps = 4, kDifferences = 8, kStagePitch = 20;
    Segments segments;
    Band band;
    int32_t products = 1;
    Operand value, pre, dy, post;
    float* sums = nullptr;

    int64_t blocks() const { return segments.blocks(); }

    // Which differences of tiles there are, in groups, and which part of the tiles of g a warp takes.
    HYENA_DEVICE static int ahead_of(const Band& b) { return (b.lead + kStepDepth - 1) / kStepDepth; }
    HYENA_DEVICE static int groups_of(const Band& b) {
        const int back = (b.last + kStepDepth - 1) / kStepDepth, tiles = b.span / kStepDepth;
        const bool halo = b.before + b.after > 0;
        return ((halo || back < tiles ? back : tiles) + ahead_of(b) + kDifferences) / kDifferences;
    }
    HYENA_DEVICE static int slices_of(const Band& b) {
        const int groups = groups_of(b);
        return groups >= kMaxWarps ? 1 : (kMaxWarps + groups - 1) / groups;
    }
    // The band of g, which has no halo.
    HYENA_DEVICE static Band own_band(const Band& b) {
        Band own;
        own.span = b.span;
        return own;
    }
    // Sums of the lags that a slice of a group of differences has: from the first, those of 16 d and above, and below.
    HYENA_DEVICE static int lags_of(const Band& b) { return groups_of(b) * kDifferences * kStepDepth; }

    // What a block has in shared memory.
    struct Memory {
        Segment segments[kMatrixRows];
        int flagged[2][kMatrixRows], scales[2][kMatrixRows];  // of the rows of p and g

        static constexpr int64_t kBytes = 1024;
        static int64_t bytes(const Band& band, int products) {
            const int64_t parts = products == 3 ? 2 : 1, chunks = int64_t(band.window()) / kChunk * kMaxWarps * 2,
                          sums = int64_t(slices_of(band)) * 2 * lags_of(band) * 4,
                          stage = kMaxWarps * kStepDepth * kStagePitch * 4 + sums;
            return kBytes + parts * kMatrixRows * (int64_t(band.pitch()) + own_band(band).pitch()) +
                   (chunks > stage ? chunks : stage);
        }
    };
    static_assert(sizeof(Memory) <= Memory::kBytes);
};

template <class Kind>
struct ToeplitzGradient : ToeplitzGradientArguments {
    using Arguments = ToeplitzGradientArguments;
    using IO = typename Kind::IO;
    static constexpr int kOwnThreads = Kind::kPlain ? kMaxWarps * kLanes : 0, kBlocksTogether = Kind::kPlain ? 3 : 1;

    HYENA_DEVICE void operator()(const Block& any_block, char* shared, int64_t index) const {
        Block block = any_block;
        if (kOwnThreads > 0) block.threads = kOwnThreads;
        Memory& memory = *reinterpret_cast<Memory*>(shared);
        const Band own = own_band(band);
        const int products = Kind::kPlain ? 1 : this->products, parts = products == 3 ? 2 : 1,
                  warps = block.threads / kLanes;
        // Of p and g; in variables of their own, as an array indexed at run time would be in local memory.
        char *const p_rows = shared + Memory::kBytes, *const g_rows = p_rows + parts * kMatrixRows * band.pitch();
        char* beside = g_rows + parts * kMatrixRows * own.pitch();
        block.each([&](int thread) {
            if (thread < kMatrixRows) memory.segments[thread] = segments.find(index, thread, band.span);
        });
        each_warp(block, [&](int warp) {
            for (int i = warp; i < 2 * kMatrixRows; i += warps) {
                const int r = i / 2, chunks = band.window() / kChunk;
                const bool gradient = i % 2 != 0;
                const Band& b = gradient ? own : band;
                auto* bytes = reinterpret_cast<uint8_t*>(beside) + 2 * (warp * chunks);
                char* to = (gradient ? g_rows : p_rows) + r * b.pitch();
                bool flagged = false;
                int scale;
                if constexpr (Kind::kPlain) {
                    const Segment& segment = memory.segments[r];
                    scale = fill_plain<IO>(b, segment, place_of((gradient ? dy : value).array, segment),
                                           place_of((gradient ? post : pre).array, segment), false, to, flagged);
                } else {
                    scale = fill_row(
                        b, segments.sequences, memory.segments[r], gradient ? dy : value, gradient ? post : pre, false,
                        {to, parts == 2 ? to + kMatrixRows * b.pitch() : nullptr, bytes, bytes + chunks}, flagged);
                }
                each_lane([&](int lane) {
                    if (lane == 0) memory.scales[i % 2][r] = scale, memory.flagged[i % 2][r] = flagged;
                });
            }
        });
        int p_scale = kLargestScale, g_scale = kLargestScale;
        for (int r = 0; r < kMatrixRows; ++r) {
            p_scale = memory.scales[0][r] < p_scale ? memory.scales[0][r] : p_scale;
            g_scale = memory.scales[1][r] < g_scale ? memory.scales[1][r] : g_scale;
        }
        float* totals = reinterpret_cast<float*>(beside + kMaxWarps * kStepDepth * kStagePitch * 4);
        const int groups = groups_of(band), slices = slices_of(band), lags = lags_of(band);
        block.each([&](int thread) {
            for (int i = thread; i < slices * 2 * lags; i += block.threads) totals[i] = 0.f;  // some have no writer
            for (int i = 0; i < 2 * kMatrixRows * parts; ++i) {
                const Band& b = i % 2 != 0 ? own : band;
                const int down = memory.scales[i % 2][i / 2 % kMatrixRows] - (i % 2 != 0 ? g_scale : p_scale);
                if (down == 0) continue;
                auto* words = reinterpret_cast<uint32_t*>((i % 2 != 0 ? g_rows : p_rows) + i / 2 * b.pitch());
                for (int at = thread; at < b.window() / 2; at += block.threads) words[at] = lowered(words[at], down);
            }
        });
        each_warp(block, [&](int warp) {
            float* stage = reinterpret_cast<float*>(beside) + warp * kStepDepth * kStagePitch;
            // Later groups have fewer tiles where there is no halo: warps take them there and back.
            for (int round = 0; round * warps < groups * slices; ++round) {
                const int item = round * warps + (round % 2 == 0 ? warp : warps - 1 - warp);
                if (item >= groups * slices) continue;
                Lanes<float, 8 * kDifferences> matrices;
                add_differences(matrices, p_rows, g_rows, item / slices, item % slices, slices);
                add_diagonals(matrices, stage, totals + item % slices * 2 * lags,
                              item / slices * kDifferences * kStepDepth, lags);
            }
        });
        block.each([&](int thread) {
            const int taps = band.taps(), first = ahead_of(band) * kStepDepth - band.lead;
            float* out = sums + (index % segments.blocks_each() * segments.filters + index / segments.blocks_each()) *
                                    taps;
            for (int tap = thread; tap < taps; tap += block.threads) {
                float sum = 0.f;
                for (int slice = 0; slice < slices && first + tap < lags; ++slice)
                    for (int side = 0; side < 2; ++side) sum += totals[(2 * slice + side) * lags + first + tap];
                sum = sum * undone(p_scale) * undone(g_scale);
                for (int r = 0; r < kMatrixRows; ++r)
                    if (memory.flagged[0][r] || memory.flagged[1][r])
                        sum += not_finite(memory.segments[r], tap - band.lead);
                out[tap] = sum;
            }
        });
    }

  private:
    // matrices[d] = sum over tiles i of the slice of g_i' p_(i - d), for the group's differences d.
    HYENA_DEVICE void add_differences(Lanes<float, 8 * kDifferences>& matrices, const char* p_rows, const char* g_rows,
                                      int group, int slice, int slices) const {
        const int products = Kind::kPlain ? 1 : this->products;
        const Band own = own_band(band);
        const int tiles = band.span / kStepDepth, p_tiles = band.window() / kStepDepth;
        // The first difference, and the tile of p that stands as far before the first of g.
        const int first = group * kDifferences - ahead_of(band), offset = band.before / kStepDepth - first;
        int begin = (tiles * slice + slices - 1) / slices;
        const int end = (tiles * (slice + 1) + slices - 1) / slices;
        if (begin < -offset) begin = -offset;
        each_lane([&](int lane) {
            HYENA_UNROLL
            for (int i = 0; i < 8 * kDifferences; ++i) matrices.at(lane, i) = 0.f;
        });
        for (int product = 0; product < products; ++product) {
            if (products == 3 && product == 2)
                each_lane([&](int lane) {
                    HYENA_UNROLL
                    for (int i = 0; i < 8 * kDifferences; ++i) matrices.at(lane, i) *= kLowUndone;
                });
            const int p_pitch = band.pitch(), g_pitch = own.pitch();
            const char* p = p_rows + (products == 3 && product == 0 ? kMatrixRows * p_pitch : 0);
            const char* g = g_rows + (products == 3 && product == 1 ? kMatrixRows * g_pitch : 0);
            Lanes<uint32_t, 4 * kDifferences> inputs;  // tile j of p at place j % kDifferences, counted from the first
            const auto load = [&](int tile, int place) {
                if (tile >= 0 && tile < p_tiles) {
                    load_matrices<true>(inputs, 4 * place, [&](int lane) {
                        return p + lane % 16 * p_pitch + 2 * kStepDepth * tile + lane / 16 * 16;
                    });
                    return;
                }
                each_lane([&](int lane) {
                    HYENA_UNROLL
                    for (int q = 0; q < 4; ++q) inputs.at(lane, 4 * place + q) = 0u;
                });
            };
            HYENA_UNROLL
            for (int k = 1; k < kDifferences; ++k) load(begin + offset - k, kDifferences - k);
            for (int base = begin; base < end; base += kDifferences) {
                HYENA_UNROLL
                for (int u = 0; u < kDifferences; ++u) {
                    if (base + u >= end) break;
                    load(base + u + offset, u);
                    Lanes<uint32_t, 4> own_tile;
                    load_matrices<true>(own_tile, 0, [&](int lane) {
                        return g + (lane % 8 + lane / 16 * 8) * g_pitch + 2 * kStepDepth * (base + u) +
                               lane / 8 % 2 * 16;
                    });
                    HYENA_UNROLL
                    for (int d = 0; d < kDifferences; ++d) {
                        const int place = (u + kDifferences - d) % kDifferences;
                        multiply_add(matrices, 8 * d, own_tile, 0, inputs, 4 * place, 4 * place + 1);
                        multiply_add(matrices, 8 * d + 4, own_tile, 0, inputs, 4 * place + 2, 4 * place + 3);
                    }
                }
            }
        }
    }

    // Sums of diagonals to totals (2, lags), from `first` on: of lags above and below, each of which has one writer.
    HYENA_DEVICE void add_diagonals(Lanes<float, 8 * kDifferences>& matrices, float* stage, float* totals, int first,
                                    int lags) const {
        HYENA_UNROLL
        for (int d = 0; d < kDifferences; ++d) {
            each_lane([&](int lane) {
                HYENA_UNROLL
                for (int i = 0; i < 4; ++i) {
                    float* to = stage + (lane / 4 + i % 2 * 8) * kStagePitch + i / 2 * 8 + lane % 4 * 2;
                    const int at = 8 * d + i / 2 * 4 + i % 2 * 2;
                    *reinterpret_cast<Cx*>(to) = {matrices.at(lane, at), matrices.at(lane, at + 1)};
                }
            });
            sync_warp();
            each_lane([&](int lane) {
                const int lag = lane - (kStepDepth - 1);  // of 16 d: t - s of place (t, s)
                float sum = 0.f;
                for (int s = 0; s < kStepDepth; ++s)
                    if (s + lag >= 0 && s + lag < kStepDepth) sum += stage[(s + lag) * kStagePitch + s];
                const int at = first + d * kStepDepth + lag;
                if (lag >= 0 && lag < kStepDepth) totals[at] = sum;
                if (lag < 0 && at >= 0) totals[lags + at] = sum;
            });
            sync_warp();
        }
    }

    // What products with an Inf or a NaN add to a tap's sum: slow, and rare.
    HYENA_APART float not_finite(const Segment& segment, int lag) const {
        const Sequences& s = segments.sequences;
        const auto line = [&](const Operand& o) { return Line(o, s, segment.row, segment.channel); };
        const Line lines[2][2] = {{line(value), line(pre)}, {line(dy), line(post)}};
        const auto at = [&](int which, int t) {
            float x, gate;
            lines[which][0].raw<1>(t, &x);
            if (!lines[which][1].given) return x;
            lines[which][1].raw<1>(t, &gate);
            return x * gate;
        };
        float sum = 0.f;
        for (int t = segment.at; t < segment.at + band.span && t < segment.row.length; ++t) {
            if (t - lag < 0 || t - lag >= segment.row.length) continue;
            const float x = at(0, t - lag), y = at(1, t);
            if (!is_finite(x) || !is_finite(y)) sum += x * y;
        }
        return sum;
    }
};

}  // namespace hyena::cuda
