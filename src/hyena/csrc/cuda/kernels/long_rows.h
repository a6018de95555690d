// Gated convolution of rows that do not fit one block: three launches (columns in, rows, columns out) over scratch
// memory, which stays in the second cache level because few (row, channel) pairs are on their way at a time.
#pragma once

#include "one_block.h"

namespace hyena::cuda {

// The (channel, row) pairs of one round: channels first_channel …, rows first_row …, rows inside.
struct Pairs {
    int64_t first_channel = 0, num_channels = 0, first_row = 0, num_rows = 0;

    HYENA_DEVICE int64_t count() const { return num_channels * num_rows; }
    HYENA_DEVICE int64_t channel(int64_t pair) const { return first_channel + pair / num_rows; }
    HYENA_DEVICE int64_t row(int64_t pair) const { return first_row + pair % num_rows; }
};

// Where the points of a round lie: pair * P + i * P2 + n2 for row i of the plan's matrix.
struct Columns {
    Transform transform;
    Between between;
    Pairs pairs;
    int64_t points = 0;
    uint32_t row_length = 0;  // P2
    Cx* scratch = nullptr;

    HYENA_DEVICE uint32_t tiles() const { return row_length / transform.lanes; }
    HYENA_DEVICE int64_t blocks() const { return pairs.count() * tiles(); }

    // fn(t, index of the first of kChunk neighbouring points in the buffer).
    template <class Fn>
    HYENA_DEVICE void each_chunk(const Block& block, int thread, uint32_t tile, Fn&& fn) const {
        const uint32_t shift = transform.lane_shift - 3, per_row = 1u << shift;
        static_assert(kChunk == 8);
        for (uint32_t i = uint32_t(thread); i < transform.points << shift; i += uint32_t(block.threads)) {
            const uint32_t n1 = i >> shift, column = (i & (per_row - 1)) * kChunk;
            fn(int(n1 * row_length + tile * transform.lanes + column), n1 * transform.lanes + column);
        }
    }

    // Real parts of kChunk neighbouring points.
    HYENA_DEVICE void get(const Cx* buffer, uint32_t at, float* x) const {
        HYENA_UNROLL
        for (int e = 0; e < kChunk; ++e) x[e] = buffer[transform.pad(at) + uint32_t(e)].re;
    }
    HYENA_DEVICE void put(Cx* buffer, uint32_t at, const float* x) const {
        HYENA_UNROLL
        for (int e = 0; e < kChunk; ++e) buffer[transform.pad(at) + uint32_t(e)].re = x[e];
    }

    template <Ends kEnds>
    HYENA_DEVICE void forward(const Block& block, Cx* buffer, int64_t pair, uint32_t tile) const {
        const Transform& t = transform;
        if constexpr (kEnds == Ends::kRealTwisted)
            first_pass<kEnds>(block, t, RealInBuffer{buffer}, InBuffer{buffer});
        else
            first_pass<kEnds>(block, t, InBuffer{buffer}, InBuffer{buffer});
        middle_forward(block, t, buffer);
        Cx* to = scratch + pair * points;
        last_pass(block, t, buffer, [&](Place p, Cx v) {
            const uint32_t i = p.i >> t.lane_shift, n2 = tile * t.lanes + (p.i & (t.lanes - 1));
            to[int64_t(i) * row_length + n2] = v * between(i, n2);
        });
    }

    template <Ends kEnds>
    HYENA_DEVICE void inverse(const Block& block, Cx* buffer, int64_t pair, uint32_t tile) const {
        const Transform& t = transform;
        const Cx* from = scratch + pair * points;
        last_pass_inverse(block, t, buffer, [&](Place p) {
            const uint32_t i = p.i >> t.lane_shift, n2 = tile * t.lanes + (p.i & (t.lanes - 1));
            return times_conj(from[int64_t(i) * row_length + n2], between(i, n2));
        });
        middle_inverse(block, t, buffer);
        if constexpr (kEnds == Ends::kRealTwisted)
            first_pass_inverse<kEnds>(block, t, InBuffer{buffer}, RealInBuffer{buffer});
        else
            first_pass_inverse<kEnds>(block, t, InBuffer{buffer}, InBuffer{buffer});
    }
};

// a * b, transformed along the columns.
struct ColumnsIn {
    static constexpr int kBlocksTogether = 1;
    Sequences sequences;
    Columns columns;
    Operand a, b;

    int64_t blocks() const { return columns.blocks(); }

    HYENA_DEVICE void operator()(const Block& block, char* shared, int64_t index) const {
        Cx* buffer = reinterpret_cast<Cx*>(shared);
        const int64_t pair = index / columns.tiles(), channel = columns.pairs.channel(pair);
        const uint32_t tile = uint32_t(index % columns.tiles());
        const Row row = row_of(sequences, columns.pairs.row(pair));
        if (row.length == 0) return;
        block.each([&](int thread) {
            const Line first(a, sequences, row, channel), second(b, sequences, row, channel);
            columns.each_chunk(block, thread, tile, [&](int t, uint32_t at) {
                float x[kChunk];
                product(first, second, t, x);
                columns.put(buffer, at, x);
            });
        });
        columns.forward<Ends::kRealTwisted>(block, buffer, pair, tile);
    }
};

// Back to time, and out: results[i] = factors[i] * conv, a factor that is not given being 1.
struct ColumnsOut {
    static constexpr int kBlocksTogether = 1;
    static constexpr int kMaxResults = 2;
    Sequences sequences;
    Columns columns;
    int count = 0;
    Operand factors[kMaxResults];
    Array results[kMaxResults];

    int64_t blocks() const { return columns.blocks(); }

    HYENA_DEVICE void operator()(const Block& block, char* shared, int64_t index) const {
        Cx* buffer = reinterpret_cast<Cx*>(shared);
        const int64_t pair = index / columns.tiles(), channel = columns.pairs.channel(pair);
        const uint32_t tile = uint32_t(index % columns.tiles());
        const Row row = row_of(sequences, columns.pairs.row(pair));
        if (row.length == 0) return;
        columns.inverse<Ends::kRealTwisted>(block, buffer, pair, tile);
        block.each([&](int thread) {
            columns.each_chunk(block, thread, tile, [&](int t, uint32_t at) {
                if (t >= row.length) return;
                for (int i = 0; i < count; ++i) {
                    float x[kChunk];
                    columns.get(buffer, at, x);
                    gate(Line(factors[i], sequences, row, channel), t, x);
                    Sink(results[i], row, channel).put(t, x);
                }
            });
        });
    }
};

// What the kernels over rows have in common: `sets` neighbouring rows of the plan's matrix.
struct MatrixRows {
    Transform transform;
    int64_t points = 0;
    uint32_t count = 0;  // P1

    HYENA_DEVICE uint32_t tiles() const { return count / transform.sets; }

    HYENA_DEVICE void load(const Block& block, Cx* buffer, const Cx* from) const {
        first_pass<Ends::kPlain>(block, transform, [&](Place p) { return from[p.i]; }, InBuffer{buffer});
        middle_forward(block, transform, buffer);
    }
    HYENA_DEVICE void store(const Block& block, Cx* buffer, Cx* to) const {
        middle_inverse(block, transform, buffer);
        first_pass_inverse<Ends::kPlain>(block, transform, InBuffer{buffer}, [&](Place p, Cx v) { to[p.i] = v; });
    }
};

// Rows to the spectrum, times that of the filter, and back.
struct RowsConvolve {
    static constexpr int kBlocksTogether = 1;
    Sequences sequences;
    MatrixRows rows;
    Pairs pairs;
    Spectra spectra;
    int64_t filter = 0;
    const float* d = nullptr;  // (C) of this filter, or null
    Cx* scratch = nullptr;

    int64_t blocks() const { return pairs.count() * rows.tiles(); }

    HYENA_DEVICE void operator()(const Block& block, char* shared, int64_t index) const {
        Cx* buffer = reinterpret_cast<Cx*>(shared);
        const int64_t pair = index / rows.tiles(), channel = pairs.channel(pair);
        const int64_t offset = index % rows.tiles() * rows.transform.sets * rows.transform.points;
        if (row_of(sequences, pairs.row(pair)).length == 0) return;
        Cx* x = scratch + pair * rows.points + offset;
        Cx* s = spectra.at(filter, channel) + offset;
        const float skip = skip_of(d, channel, 1.f / float(rows.points));
        rows.load(block, buffer, x);
        turning_pass(block, rows.transform, buffer, [&](uint32_t set) {
            return [skip, f = s + set * rows.transform.points](auto radix, uint32_t index, uint32_t stride, Cx* a) {
                times_filter<false>(radix, Strided(f, index, stride), skip, a);
            };
        });
        rows.store(block, buffer, x);
    }
};

// The gradient: `input` holds pre * value and becomes its convolution, `gradient` that of the convolution and becomes
// that of pre * value. A block has all of the round's rows, one after the other.
struct RowsBackward {
    static constexpr int kBlocksTogether = 1;
    Sequences sequences;
    MatrixRows rows;
    Pairs pairs;
    Spectra spectra;
    const float* d = nullptr;
    Cx *input = nullptr, *gradient = nullptr;
    bool want_output = false;  // whether the convolution is wanted
    Cx* kept = nullptr;        // (blocks, sets * P2)
    Cx* dspectra = nullptr;    // (C, spectrum_stride), added to
    int64_t spectrum_stride = 0;

    int64_t blocks() const { return pairs.num_channels * rows.tiles(); }

    HYENA_DEVICE void operator()(const Block& block, char* shared, int64_t index) const {
        const Transform& t = rows.transform;
        Cx* buffer = reinterpret_cast<Cx*>(shared);
        const int64_t offset = index % rows.tiles() * t.sets * t.points,
                      channel = pairs.first_channel + index / rows.tiles();
        Cx* s = spectra.at(0, channel) + offset;
        const float skip = skip_of(d, channel, 1.f / float(rows.points));
        Cx* own_spectrum = kept + index * t.sets * t.points;
        Cx* sum = dspectra + channel * spectrum_stride + offset;
        for (int64_t i = 0; i < pairs.num_rows; ++i) {
            if (row_of(sequences, pairs.first_row + i).length == 0) continue;
            const int64_t at = (index / rows.tiles() * pairs.num_rows + i) * rows.points + offset;
            rows.load(block, buffer, input + at);
            turning_pass(block, t, buffer, [&](uint32_t set) {
                const uint32_t first = set * t.points;
                return [skip, f = s + first, keep = own_spectrum + first](auto radix, uint32_t index, uint32_t stride,
                                                                          Cx* a) {
                    const Strided kept_at(keep, index, stride);
                    unrolled<decltype(radix)::value>([&](auto k) { kept_at[k] = a[k]; });
                    times_filter<false>(radix, Strided(f, index, stride), skip, a);
                };
            });
            if (want_output) rows.store(block, buffer, input + at);
            rows.load(block, buffer, gradient + at);
            turning_pass(block, t, buffer, [&](uint32_t set) {
                const uint32_t first = set * t.points;
                return [skip, f = s + first, keep = own_spectrum + first, total = sum + first](
                           auto radix, uint32_t index, uint32_t stride, Cx* a) {
                    add_products<decltype(radix)::value>(Strided(total, index, stride), a,
                                                         Strided(keep, index, stride));
                    times_filter<true>(radix, Strided(f, index, stride), skip, a);
                };
            });
            rows.store(block, buffer, gradient + at);
        }
    }
};

}  // namespace hyena::cuda
