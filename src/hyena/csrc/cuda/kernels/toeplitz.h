// Direct convolutions as products of matrices on tensor cores: rows (segments.h) times the Toeplitz matrix of a filter
// (products.h).
//
// With finite inputs no output depends on a later one, not in a bit: the later ones are multiplied by zeros, products
// are exact, and a row's scale changes only exponents. Where it would change more, or an input is not finite, the row
// is flagged, and careful.h gives its outputs a scale each.
//
// Operands are rounded to fp16, once; or, for float32, are two fp16 numbers each, and three products are added. Sums
// are float32.
#pragma once

#include "careful.h"
#include "plain.h"

namespace hyena::cuda {

// A direct convolution, or the gradient of its input: up to two results, each with a factor that may be missing.
struct ToeplitzArguments {
    static constexpr int kMaxWarps = 4, kStageWidth = 32, kStagePitch = kStageWidth + 8, kResults = 2;
    Segments segments;
    Band band;
    int32_t products = 1;
    const float *h = nullptr, *d = nullptr;  // (filters, taps), (channels) or null
    Operand value, pre;                      // multiplied, they are the input
    int32_t results = 1;
    Operand factors[kResults];
    Array outputs[kResults];

    int64_t blocks() const { return segments.blocks(); }
    static int64_t warps(const Band& band) {
        const int tiles = band.span / kTile;
        return tiles < kMaxWarps ? tiles : kMaxWarps;
    }

    // What a block has in shared memory.
    struct Memory {
        Segment segments[kMatrixRows];
        int flagged[kMatrixRows], scales[kMatrixRows];  // of rows
        float largest[kMaxWarps];                       // tap that each warp saw
        // Of plain arrays, where the rows begin.
        const char *value[kMatrixRows], *pre[kMatrixRows], *factors[kResults][kMatrixRows];
        char* outputs[kResults][kMatrixRows];

        static constexpr int64_t kBytes = 2048;
        // Behind it: pairs, rows, and either the chunks' scales or what warps store.
        static int64_t bytes(const Band& band, int products, bool plain) {
            const int64_t parts = products == 3 ? 2 : 1, own = plain ? kMaxWarps : warps(band),
                          chunks = plain ? 0 : int64_t(band.window()) / kChunk * own * 2,
                          stage = own * kMatrixRows * kStagePitch * 4;
            return kBytes + parts * (4 * band.pairs() + int64_t(kMatrixRows) * band.pitch()) +
                   (chunks > stage ? chunks : stage);
        }
    };
    static_assert(sizeof(Memory) <= Memory::kBytes);
};

template <class Kind>
struct Toeplitz : ToeplitzArguments {
    using Arguments = ToeplitzArguments;
    using IO = typename Kind::IO;
    static constexpr int kOwnThreads = Kind::kPlain ? kMaxWarps * kLanes : 0, kBlocksTogether = Kind::kPlain ? 4 : 1;

    HYENA_DEVICE void operator()(const Block& any_block, char* shared, int64_t index) const {
        Block block = any_block;
        if (kOwnThreads > 0) block.threads = kOwnThreads;
        Memory& memory = *reinterpret_cast<Memory*>(shared);
        uint32_t* pairs = reinterpret_cast<uint32_t*>(shared + Memory::kBytes);
        const int products = Kind::kPlain ? 1 : this->products, parts = products == 3 ? 2 : 1, pitch = band.pitch(),
                  warps = block.threads / kLanes;
        char* rows = shared + Memory::kBytes + parts * 4 * band.pairs();
        char* beside = rows + parts * kMatrixRows * pitch;
        const float* own = h + index / segments.blocks_each() * band.taps();

        each_warp(block, [&](int warp) {
            Lanes<float, 1> most;
            each_lane([&](int lane) {
                const int thread = warp * kLanes + lane;
                if (thread < kMatrixRows) {
                    memory.segments[thread] = segments.find(index, thread, band.span);
                    if constexpr (Kind::kPlain) find_places(memory, thread);
                }
                most.at(lane, 0) = 0.f;
                for (int i = thread; i < band.taps(); i += block.threads) {
                    const float x = own[i] < 0 ? -own[i] : own[i];
                    if (is_finite(x) && x > most.at(lane, 0)) most.at(lane, 0) = x;
                }
            });
            largest(most);
            each_lane([&](int lane) {
                if (lane == 0) memory.largest[warp] = most.at(lane, 0);
            });
        });
        float most = 0.f;
        for (int i = 0; i < warps; ++i) most = memory.largest[i] > most ? memory.largest[i] : most;
        const int scale = scale_of(exponent_of(most));
        check_offsets(block, memory);
        each_warp(block, [&](int warp) {
            fill_pairs(pairs, own, power(scale), parts, warp, block);
            for (int r = warp; r < kMatrixRows; r += warps) {
                const int chunks = band.window() / kChunk;
                char* to = rows + r * pitch;
                bool flagged = false;
                int row_scale;
                if constexpr (Kind::kPlain) {
                    row_scale = fill_plain<IO>(band, memory.segments[r], memory.value[r], memory.pre[r],
                                               band.lead == 0, to, flagged);
                } else {
                    auto* bytes = reinterpret_cast<uint8_t*>(beside) + 2 * warp * chunks;
                    row_scale = fill_row(band, segments.sequences, memory.segments[r], value, pre, band.lead == 0,
                                         {to, parts == 2 ? to + kMatrixRows * pitch : nullptr, bytes, bytes + chunks},
                                         flagged);
                }
                each_lane([&](int lane) {
                    if (lane == 0) memory.scales[r] = row_scale, memory.flagged[r] = flagged;
                });
            }
        });
        const Products what{rows, pairs, products, int64_t(kMatrixRows) * pitch, band.pairs()};
        each_warp(block, [&](int warp) {
            float* stage = reinterpret_cast<float*>(beside) + warp * kMatrixRows * kStagePitch;
            const int tiles = band.span / kTile;
            // Later tiles have more before them where there is no halo: warps take them there and back.
            for (int round = 0; round * warps < tiles; ++round) {
                const int tile = round * warps + (round % 2 == 0 ? warp : warps - 1 - warp);
                if (tile >= tiles) continue;
                const int t0 = band.before + tile * kTile;
                Lanes<float, kTileSums> sums;
                add_tile(sums, band, what, t0);
                if constexpr (Kind::kPlain)
                    store_plain(memory, sums, stage, t0, undone(scale));
                else
                    store(memory, sums, stage, t0, undone(scale));
            }
        });
        bool any = false;
        for (int r = 0; r < kMatrixRows; ++r) any = any || memory.flagged[r] != 0;
        if (any) run_careful(block, memory, what, own, undone(scale), rows);
    }

  private:
    // Apart, so that what is rare takes no registers of what is not.
    HYENA_APART void run_careful(const Block& block, const Memory& memory, const Products& what, const float* own,
                                 float undo, char* rows) const {
        const CarefulRow careful{band, what, own, undo, rows};  // where rows were that nobody needs any more
        for (int r = 0; r < kMatrixRows; ++r)
            if (memory.flagged[r])
                careful.run(block, segments.sequences, memory.segments[r], value, pre,
                            [&](int w, const float* sums) { put(memory.segments[r], w, sums); });
    }

    HYENA_DEVICE void find_places(Memory& memory, int r) const {
        const Segment& segment = memory.segments[r];
        memory.value[r] = place_of(value.array, segment);
        memory.pre[r] = place_of(pre.array, segment);
        HYENA_UNROLL
        for (int i = 0; i < kResults; ++i) {
            memory.factors[i][r] = place_of(factors[i].array, segment);
            memory.outputs[i][r] = place_of(outputs[i], segment);
        }
    }

    // Another thread than the first may have found wrong offsets, and only the first says so.
    HYENA_DEVICE void check_offsets(const Block& block, const Memory& memory) const {
        const Sequences& s = segments.sequences;
        if (s.offsets == nullptr) return;
        block.each([&](int thread) {
            if (thread != 0) return;
            for (int r = 0; r < kMatrixRows; ++r) row_of(s, memory.segments[r].number);
            if (s.offsets[0] != 0 || s.offsets[s.count] != s.length)
                fail_on_offsets(0, s.offsets[0], s.offsets[s.count], s.longest, s.length);
        });
    }

    HYENA_DEVICE void fill_pairs(uint32_t* pairs, const float* own, float factor, int parts, int warp,
                                 const Block& block) const {
        const int count = band.pairs(), first = band.first_lag() + band.lead, taps = band.taps();
        each_lane([&](int lane) {
            for (int i = warp * kLanes + lane; i < count; i += block.threads) {
                const int m = first + i;
                const float x = m >= 0 && m < taps ? own[m] * factor : 0.f,
                            y = m > 0 && m <= taps ? own[m - 1] * factor : 0.f;
                pairs[i] = packed<Float16>(x, y);
                if (parts == 2) pairs[count + i] = packed<Float16>(Halves(x).low, Halves(y).low);
            }
        });
    }

    // Sums of kStageWidth positions, from a warp's registers to where lanes have chunks of them.
    HYENA_DEVICE static void put_stage(Lanes<float, kTileSums>& sums, float* stage, int part) {
        constexpr int kBlocks = kStageWidth / 8;
        each_lane([&](int lane) {
            HYENA_UNROLL
            for (int n = 0; n < kBlocks; ++n)
                HYENA_UNROLL
            for (int half = 0; half < 2; ++half) {
                const int i = (part * kBlocks + n) * 4 + half * 2;
                float* to = stage + (lane / 4 + half * 8) * kStagePitch + 8 * n + lane % 4 * 2;
                *reinterpret_cast<Cx*>(to) = {sums.at(lane, i), sums.at(lane, i + 1)};
            }
        });
        sync_warp();
    }

    // The tile's results, by a warp.
    HYENA_DEVICE void store(const Memory& memory, Lanes<float, kTileSums>& sums, float* stage, int t0,
                            float undo) const {
        constexpr int kChunks = kStageWidth / kChunk;
        HYENA_UNROLL
        for (int part = 0; part < kTile / kStageWidth; ++part) {
            put_stage(sums, stage, part);
            each_lane([&](int lane) {
                for (int i = lane; i < kMatrixRows * kChunks; i += kLanes) {
                    const int r = i / kChunks, at = i % kChunks * kChunk;
                    if (memory.flagged[r]) continue;
                    const float* from = stage + r * kStagePitch + at;
                    float x[kChunk];
                    HYENA_UNROLL
                    for (int e = 0; e < kChunk; ++e) x[e] = from[e] * undone(memory.scales[r]) * undo;
                    put(memory.segments[r], t0 + part * kStageWidth + at, x);
                }
            });
            sync_warp();
        }
    }

    // The same of plain arrays: a lane has the same two rows in every part.
    HYENA_DEVICE void store_plain(const Memory& memory, Lanes<float, kTileSums>& sums, float* stage, int t0,
                                  float undo) const {
        constexpr int kChunks = kStageWidth / kChunk, kStep = kLanes / kChunks;
        HYENA_UNROLL
        for (int part = 0; part < kTile / kStageWidth; ++part) {
            put_stage(sums, stage, part);
            each_lane([&](int lane) {
                HYENA_UNROLL
                for (int i = 0; i < kMatrixRows / kStep; ++i) {
                    const int r = lane / kChunks + i * kStep, at = lane % kChunks * kChunk;
                    put_plain(memory, r, t0 + part * kStageWidth + at, stage + r * kStagePitch + at, undo);
                }
            });
            sync_warp();
        }
    }
    HYENA_DEVICE void put_plain(const Memory& memory, int r, int w, const float* from, float undo) const {
        const int t = band.time_of(memory.segments[r].at, w);
        if (t >= memory.segments[r].row.length || memory.flagged[r]) return;
        // All that is read, before the first of it is used.
        Pack<IO, kChunk> a = ones<IO>(), b = a, gates[kResults] = {a, a};
        if (d != nullptr) a = plain_chunk<IO>(memory.value[r], t);
        if (d != nullptr && memory.pre[r] != nullptr) b = plain_chunk<IO>(memory.pre[r], t);
        HYENA_UNROLL
        for (int i = 0; i < kResults; ++i)
            if (i < results && memory.factors[i][r] != nullptr) gates[i] = plain_chunk<IO>(memory.factors[i][r], t);
        const float scale = undone(memory.scales[r]);
        float y[kChunk];
        HYENA_UNROLL
        for (int e = 0; e < kChunk; ++e) y[e] = from[e] * scale * undo;
        if (band.reversed) {
            HYENA_UNROLL
            for (int e = 0; e < kChunk / 2; ++e) {
                const float other = y[e];
                y[e] = y[kChunk - 1 - e];
                y[kChunk - 1 - e] = other;
            }
        }
        if (d != nullptr) {
            const float weight = d[memory.segments[r].channel];
            float p[kChunk];
            a.get(p);
            times(b, p);
            HYENA_UNROLL
            for (int e = 0; e < kChunk; ++e) y[e] += weight * p[e];
        }
        HYENA_UNROLL
        for (int i = 0; i < kResults; ++i) {
            if (i >= results) continue;
            float z[kChunk];
            gates[i].get(z);
            HYENA_UNROLL
            for (int e = 0; e < kChunk; ++e) z[e] *= y[e];
            Pack<IO, kChunk> pack;
            pack.set(z);
            *reinterpret_cast<Pack<IO, kChunk>*>(opaque(memory.outputs[i][r]) + 2 * t) = pack;
        }
    }

    // Outputs at w … w + kChunk - 1 of the window, of which x are the sums.
    HYENA_DEVICE void put(const Segment& segment, int w, const float* x) const {
        const int t = band.time_of(segment.at, w);
        if (t >= segment.row.length) return;
        const Sequences& s = segments.sequences;
        float y[kChunk];
        HYENA_UNROLL
        for (int e = 0; e < kChunk; ++e) y[e] = x[band.reversed ? kChunk - 1 - e : e];
        if (d != nullptr) {
            float p[kChunk];
            product(Line(value, s, segment.row, segment.channel), Line(pre, s, segment.row, segment.channel), t, p);
            const float weight = d[segment.channel];
            HYENA_UNROLL
            for (int e = 0; e < kChunk; ++e) y[e] += weight * p[e];
        }
        for (int i = 0; i < results; ++i) {
            float z[kChunk];
            HYENA_UNROLL
            for (int e = 0; e < kChunk; ++e) z[e] = y[e];
            gate(Line(factors[i], s, segment.row, segment.channel), t, z);
            Sink(outputs[i], segment.row, segment.channel).put(t, z);
        }
    }
};

}  // namespace hyena::cuda
