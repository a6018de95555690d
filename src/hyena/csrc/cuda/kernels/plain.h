// Rows of a matrix out of plain arrays: one dtype of 2 bytes, no short convolution and no mask, batch rows whose chunks
// are all aligned and all inside. What Line decides for each chunk (lines.h) is decided once here, by the compiler or
// for a row; the results are those of segments.h, bit for bit.
#pragma once

#include "segments.h"

namespace hyena::cuda {

// What a kernel on tensor cores is compiled for: whatever comes, or plain arrays of one dtype.
struct AnyRows {
    static constexpr bool kPlain = false;
    using IO = float;
};
template <class IO_>
struct PlainRows {
    static constexpr bool kPlain = true;
    using IO = IO_;
};

constexpr int kPlainChunks = 8, kInFlight = 4;                    // of a lane, and those that are read together
constexpr int kPlainWindow = kPlainChunks * kLanes * kChunk;      // positions, at most

// Where a segment's row begins in an array; null if there is no array.
HYENA_DEVICE char* place_of(const Array& array, const Segment& segment) {
    return array.data == nullptr ? nullptr : array.at(segment.row, segment.channel);
}

template <class IO>
HYENA_DEVICE Pack<IO, kChunk> ones() {
    Pack<IO, kChunk> pack;
    HYENA_UNROLL
    for (int i = 0; i < 4; ++i) pack.words[i] = packed<IO>(1.f, 1.f);
    return pack;
}
template <class IO>
HYENA_DEVICE Pack<IO, kChunk> plain_chunk(const char* row, int t) {
    return *reinterpret_cast<const Pack<IO, kChunk>*>(opaque(row) + 2 * t);  // known to be in device memory
}
// x times a chunk.
template <class IO>
HYENA_DEVICE void times(const Pack<IO, kChunk>& pack, float* x) {
    float y[kChunk];
    pack.get(y);
    HYENA_UNROLL
    for (int e = 0; e < kChunk; ++e) x[e] *= y[e];
}

// A chunk at its own scale, and in `state` the scale and, from bit 8 on, the exponent of the smallest number. Returns
// whether something is not finite.
HYENA_DEVICE bool scale_chunk(float* x, Pack<Float16, kChunk>& to, int& state) {
    uint32_t big = 0, small = ~0u;
    bool wrong = false;
    HYENA_UNROLL
    for (int e = 0; e < kChunk; ++e) {
        const uint32_t bits = bits_as<uint32_t>(x[e]) & 0x7fffffffu;
        big = bits > big ? bits : big;
        small = bits - 1 < small ? bits - 1 : small;
    }
    if (big >= 0x7f800000u) {
        wrong = true, big = 0;
        HYENA_UNROLL
        for (int e = 0; e < kChunk; ++e) {
            if (!is_finite(x[e])) x[e] = 0.f;
            const uint32_t bits = bits_as<uint32_t>(x[e]) & 0x7fffffffu;
            big = bits > big ? bits : big;
        }
    }
    const int scale = scale_of(int(big >> 23));
    state = scale | int(small >> 23 < 0xff ? small >> 23 : 0xff) << 8;
    const float factor = power(scale);
    HYENA_UNROLL
    for (int e = 0; e < kChunk; ++e) x[e] *= factor;
    to.set(x);
    return wrong;
}

// As fill_row, of arrays at the row's beginning. Chunks stay in registers until the row's scale is known.
template <class IO>
HYENA_DEVICE int fill_plain(const Band& band, const Segment& segment, const char* value, const char* pre, bool causal,
                            char* to, bool& flagged) {
    const int chunks = band.window() / kChunk, at = segment.at, length = segment.row.length;
    Lanes<Pack<Float16, kChunk>, kPlainChunks> numbers;
    Lanes<int, kPlainChunks> states;
    Lanes<int, 1> most, first, wrong;
    each_lane([&](int lane) {
        int least = kLargestScale;
        wrong.at(lane, 0) = 0;
        HYENA_UNROLL
        for (int group = 0; group < kPlainChunks; group += kInFlight) {
            if (group * kLanes >= chunks) continue;
            Pack<IO, kChunk> a[kInFlight], b[kInFlight];
            HYENA_UNROLL
            for (int j = 0; j < kInFlight; ++j) {
                const int chunk = lane + (group + j) * kLanes, t = band.time_of(at, chunk * kChunk);
                const bool inside = chunk < chunks && t >= 0 && t < length;
                a[j] = {};
                b[j] = ones<IO>();
                if (inside) a[j] = plain_chunk<IO>(value, t);
                if (inside && pre != nullptr) b[j] = plain_chunk<IO>(pre, t);
            }
            HYENA_UNROLL
            for (int j = 0; j < kInFlight; ++j) {
                float x[kChunk];
                a[j].get(x);
                times(b[j], x);
                int& state = states.at(lane, group + j);
                if (scale_chunk(x, numbers.at(lane, group + j), state)) wrong.at(lane, 0) = 1;
                const int scale = state & 0xff;
                if (causal && (state >> 8) + scale < kLeastNormal) wrong.at(lane, 0) = 1;
                least = scale < least ? scale : least;
            }
        }
        most.at(lane, 0) = -least;
    });
    largest(most);
    int scale = 0;
    each_lane([&](int lane) {
        scale = -most.at(lane, 0);
        first.at(lane, 0) = -chunks;
        HYENA_UNROLL
        for (int j = kPlainChunks - 1; j >= 0; --j) {
            const int chunk = lane + j * kLanes;
            if (chunk >= chunks) continue;
            const int down = (states.at(lane, j) & 0xff) - scale;
            Pack<Float16, kChunk> x = numbers.at(lane, j);
            if (down == 0) {
                first.at(lane, 0) = -chunk;
            } else {
                HYENA_UNROLL
                for (int i = 0; i < 4; ++i) x.words[i] = lowered(x.words[i], down);
            }
            if (band.reversed) {
                const Pack<Float16, kChunk> forwards = x;
                HYENA_UNROLL
                for (int i = 0; i < 4; ++i) x.words[i] = forwards.words[3 - i] >> 16 | forwards.words[3 - i] << 16;
            }
            reinterpret_cast<Pack<Float16, kChunk>*>(to)[chunk] = x;
        }
    });
    if (causal) {
        largest(first);
        each_lane([&](int lane) {
            HYENA_UNROLL
            for (int j = 0; j < kPlainChunks; ++j) {
                const int chunk = lane + j * kLanes;
                if (chunk <= -first.at(lane, 0) && chunk < chunks && (states.at(lane, j) >> 8) + scale < kLeastNormal)
                    wrong.at(lane, 0) = 1;
            }
        });
    }
    largest(wrong);
    each_lane([&](int lane) { flagged = wrong.at(lane, 0) != 0; });
    return scale;
}

}  // namespace hyena::cuda
