// Segments of rows as rows of a matrix: fp16 numbers in shared memory, scaled by powers of two.
//
// A row of a call is cut into segments of `span` outputs, and a window holds what these are made of: so many inputs
// before and after, zeros where there are none. Batch rows, packed rows and the channels that share a filter are rows
// of one matrix that way, 16 of which a block has.
//
// The nouns of this room:
// - Band: which lags a filter has, and the windows that follow; a window may hold time backwards, for gradients.
// - Segments: all the matrix rows of a filter; Segment: one of them, in shared memory.
// - scale: the power of two, given by its float32 exponent field, that brings the largest number to 2^14 … 2^15.
// - flagged: a row whose numbers one scale does not serve; see fill_row, and toeplitz.h for what becomes of it.
#pragma once

#include "../device/warp.h"
#include "lines.h"

namespace hyena::cuda {

constexpr int kMatrixRows = 16, kTile = 128, kStepDepth = 16;

// Lags -lead … last. In a window, outputs begin at `before`; positions count backwards in time with `reversed`.
struct Band {
    int32_t lead = 0, last = 0, span = 0, before = 0, after = 0;
    bool reversed = false;

    HYENA_DEVICE int taps() const { return lead + last + 1; }
    HYENA_DEVICE int window() const { return before + span + after; }
    // Tiles that a tile's inputs lie before and behind it.
    HYENA_DEVICE int tiles_back() const { return (last + kTile - 1) / kTile; }
    HYENA_DEVICE int tiles_ahead() const { return (lead + kTile - 1) / kTile; }
    HYENA_DEVICE int pitch() const { return 2 * window() + 16; }  // bytes; 16-byte accesses of 8 rows meet all banks
    // Pairs of neighbouring taps, from lag first_lag() on.
    HYENA_DEVICE int first_lag() const { return -(kTile + kTile * used_ahead()); }
    HYENA_DEVICE int pairs() const { return 2 * kTile + kTile * (used_ahead() + used_back()); }

    // Where the chunk at position w of the window begins in its row.
    HYENA_DEVICE int time_of(int at, int w) const {
        return reversed ? at + span + before - kChunk - w : at + w - before;
    }

  private:
    // Without a halo, as far as the window goes.
    HYENA_DEVICE int used_back() const { return before > 0 ? tiles_back() : least(tiles_back(), span / kTile - 1); }
    HYENA_DEVICE int used_ahead() const { return after > 0 ? tiles_ahead() : least(tiles_ahead(), span / kTile - 1); }
    HYENA_DEVICE static int least(int a, int b) { return a < b ? a : b; }
};

struct Segment {
    Row row;
    int32_t at = 0;  // of its first output in the row
    uint32_t channel = 0, number = 0;
};

// Matrix rows of each filter: channels that share it, then rows, then segments.
struct Segments {
    Sequences sequences;
    int64_t filters = 0, width = 0;  // channels of a filter
    int64_t each = 0;                // matrix rows of a channel

    Segments() = default;
    Segments(const Sequences& s, int64_t filters_, int64_t width_, int64_t span)
        : sequences(s), filters(filters_), width(width_), each(count(s, span)) {}

    // Packed row r has its segments from r + offsets[r] / span on, which leaves room for all of them.
    static int64_t count(const Sequences& s, int64_t span) {
        return s.offsets == nullptr ? s.count * ((s.length + span - 1) / span) : s.count + s.length / span;
    }
    int64_t blocks() const { return filters * blocks_each(); }
    HYENA_DEVICE int64_t blocks_each() const { return (width * each + kMatrixRows - 1) / kMatrixRows; }

    // The block's matrix row r. Its row is empty if there is none.
    HYENA_DEVICE Segment find(int64_t block, int r, int span) const {
        Segment found{{0, 0, 0}};
        const int64_t filter = block / blocks_each(), index = block % blocks_each() * kMatrixRows + r;
        if (index >= width * each) return found;
        found.channel = uint32_t(filter * width + index / each);
        int64_t rest = index % each;
        if (sequences.offsets == nullptr) {
            const int64_t segments = each / sequences.count;
            found.row = row_of(sequences, rest / segments);
            found.at = int32_t(rest % segments * span);
            return found;
        }
        int64_t low = 0, high = sequences.count;  // the last row that begins at or before `rest`
        while (high - low > 1) {
            const int64_t middle = (low + high) / 2;
            if (middle + sequences.offsets[middle] / span <= rest)
                low = middle;
            else
                high = middle;
        }
        found.number = uint32_t(low);
        found.row = row_of(sequences, low);
        rest = (rest - low - found.row.start / span) * span;
        found.at = int32_t(rest);
        if (rest >= found.row.length) found.row.length = 0;
        return found;
    }
};

// ---- scales
// -------------------------------------------------------------------------------------------------------------

constexpr int kLargestScale = 253;  // so that what undoes it is a normal number
constexpr int kLeastNormal = 240;   // of the sum of a number's and its scale's exponent fields, or bits get lost

HYENA_DEVICE int exponent_of(float x) { return int(bits_as<uint32_t>(x) >> 23 & 0xff); }
HYENA_DEVICE bool is_finite(float x) { return exponent_of(x) < 0xff; }
HYENA_DEVICE int scale_of(int exponent) { return 268 - exponent < kLargestScale ? 268 - exponent : kLargestScale; }
HYENA_DEVICE float power(int field) { return bits_as<float>(uint32_t(field) << 23); }
HYENA_DEVICE float undone(int scale) { return power(254 - scale); }

// A number as one fp16 number, or as the sum of that and kLowUndone times another.
constexpr float kLowUndone = 1.f / 2048.f;
struct Halves {
    float high, low;
    HYENA_DEVICE explicit Halves(float scaled)
        : high(to_float(from_float<Float16>(scaled))), low((scaled - high) / kLowUndone) {}
};

// Two fp16 numbers times 2^-down, down >= 0.
HYENA_DEVICE uint32_t lowered(uint32_t word, int down) {
#if defined(__CUDA_ARCH__)
    if (down <= 14) {
        const uint32_t factor = uint32_t(15 - down) << 10;
        return bits_as<uint32_t>(__hmul2(bits_as<__half2>(word), bits_as<__half2>(factor | factor << 16)));
    }
#endif
    if (down > 60) return 0;
    float x[2];
    unpack<Float16>(word, x);
    return packed<Float16>(x[0] * power(127 - down), x[1] * power(127 - down));
}

// A matrix row in shared memory.
struct ScaledRow {
    char *high, *low;          // fp16, `low` only for products of float32
    uint8_t *scales, *smalls;  // of each chunk: its scale, and the exponent of its smallest number other than 0
};

// Fills a row with value * pre, by a warp. Returns its scale in every lane, and in `flagged` whether it is not one to
// multiply as it stands: with an Inf or a NaN, for which zeros stand; or, if that may not be seen (`causal`), with a
// number that loses bits for the sake of a later one that is 2^28 times larger.
HYENA_DEVICE int fill_row(const Band& band, const Sequences& sequences, const Segment& segment, const Operand& value,
                          const Operand& pre, bool causal, const ScaledRow& to, bool& flagged) {
    const int chunks = band.window() / kChunk;
    const Line a(value, sequences, segment.row, segment.channel), b(pre, sequences, segment.row, segment.channel);
    Lanes<int, 1> state;  // of a lane: minus its least scale, then minus its first chunk of the row's scale, then flags
    each_lane([&](int lane) {
        int least = kLargestScale, wrong = 0;
        for (int chunk = lane; chunk < chunks; chunk += kLanes) {
            const int t = band.time_of(segment.at, chunk * kChunk);
            float x[kChunk] = {};
            if (t >= 0 && t < segment.row.length) product(a, b, t, x);
            uint32_t big = 0, small = ~0u;
            HYENA_UNROLL
            for (int e = 0; e < kChunk; ++e) {
                const uint32_t bits = bits_as<uint32_t>(x[e]) & 0x7fffffffu;
                big = bits > big ? bits : big;
                small = bits - 1 < small ? bits - 1 : small;
            }
            if (big >= 0x7f800000u) {
                wrong = 1, big = 0;
                for (int e = 0; e < kChunk; ++e) {
                    if (!is_finite(x[e])) x[e] = 0.f;
                    const uint32_t bits = bits_as<uint32_t>(x[e]) & 0x7fffffffu;
                    big = bits > big ? bits : big;
                }
            }
            const int scale = scale_of(int(big >> 23)), least_exponent = int(small >> 23 < 0xff ? small >> 23 : 0xff);
            if (causal && least_exponent + scale < kLeastNormal) wrong = 1;
            to.scales[chunk] = uint8_t(scale);
            to.smalls[chunk] = uint8_t(least_exponent);
            least = scale < least ? scale : least;
            const float factor = power(scale);
            Pack<Float16, kChunk> high, low;
            float parts[2][kChunk];
            HYENA_UNROLL
            for (int e = 0; e < kChunk; ++e) {
                const float scaled = x[band.reversed ? kChunk - 1 - e : e] * factor;
                parts[0][e] = scaled;
                if (to.low != nullptr) parts[1][e] = Halves(scaled).low;
            }
            high.set(parts[0]);
            reinterpret_cast<Pack<Float16, kChunk>*>(to.high)[chunk] = high;
            if (to.low == nullptr) continue;
            low.set(parts[1]);
            reinterpret_cast<Pack<Float16, kChunk>*>(to.low)[chunk] = low;
        }
        state.at(lane, 0) = wrong << 16 | (kLargestScale - least);
    });
    Lanes<int, 1> wrong;
    each_lane([&](int lane) {
        wrong.at(lane, 0) = state.at(lane, 0) >> 16;
        state.at(lane, 0) &= 0xffff;
    });
    largest(state);
    int scale = 0;
    Lanes<int, 1> first;
    each_lane([&](int lane) {
        scale = kLargestScale - state.at(lane, 0);
        first.at(lane, 0) = -chunks;
        for (int chunk = lane; chunk < chunks; chunk += kLanes) {
            const int down = to.scales[chunk] - scale;
            if (down == 0) {
                if (first.at(lane, 0) == -chunks) first.at(lane, 0) = -chunk;
                continue;
            }
            for (int part = 0; part < (to.low == nullptr ? 1 : 2); ++part) {
                auto& pack = reinterpret_cast<Pack<Float16, kChunk>*>(part == 0 ? to.high : to.low)[chunk];
                Pack<Float16, kChunk> x = pack;
                HYENA_UNROLL
                for (int i = 0; i < 4; ++i) x.words[i] = lowered(x.words[i], down);
                pack = x;
            }
        }
    });
    if (causal) {
        largest(first);
        each_lane([&](int lane) {
            for (int chunk = lane; chunk <= -first.at(lane, 0) && chunk < chunks; chunk += kLanes)
                if (to.smalls[chunk] + scale < kLeastNormal) wrong.at(lane, 0) = 1;
        });
    }
    largest(wrong);
    each_lane([&](int lane) { flagged = wrong.at(lane, 0) != 0; });
    return scale;
}

}  // namespace hyena::cuda
