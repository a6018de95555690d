// Programs without a transform: the short convolution and its gradient, products of operands, and sums.
#pragma once

#include "lines.h"

namespace hyena::cuda {

// Blocks over tiles of positions and channels.
struct Pieces {
    Sequences sequences;
    Tiles tiles;
    int64_t channels = 0;
    int positions = 0;  // of a tile

    Pieces() = default;
    Pieces(const Sequences& s, int64_t c, int p) : sequences(s), tiles(s, p), channels(c), positions(p) {}

    HYENA_DEVICE int64_t count() const { return tiles.count() * channels; }
    HYENA_DEVICE int64_t channel(int64_t block) const { return block / tiles.each % channels; }
    HYENA_DEVICE int64_t tile(int64_t block) const {
        return block / tiles.each / channels * tiles.each + block % tiles.each;
    }

    // fn(row, t) for the thread's chunks of a block.
    template <class Fn>
    HYENA_DEVICE void each(const Block& block, int64_t index, int thread, Fn&& fn) const {
        tiles.chunks(sequences, tile(index), positions, block, thread, fn);
    }
};

// y = a * b, each behind its short convolution; b may be missing.
struct Multiply {
    static constexpr int kBlocksTogether = 1;
    static constexpr int kPositions = 2048;
    Pieces pieces;
    Operand a, b;
    Array y;

    int64_t blocks() const { return pieces.count(); }

    HYENA_DEVICE void operator()(const Block& block, char*, int64_t index) const {
        const int64_t channel = pieces.channel(index);
        block.each([&](int thread) {
            pieces.each(block, index, thread, [&](const Row& row, int t) {
                float x[kChunk];
                product(Line(a, pieces.sequences, row, channel), Line(b, pieces.sequences, row, channel), t, x);
                Sink(y, row, channel).put(t, x);
            });
        });
    }
};

// Sums over positions of a * b * c * e, all but a perhaps missing: (tiles, C).
struct Dot {
    static constexpr int kBlocksTogether = 1;
    static constexpr int kPositions = 16384;
    Pieces pieces;
    Operand a, b, c, e;
    float* sums = nullptr;

    int64_t blocks() const { return pieces.count(); }

    HYENA_DEVICE void operator()(const Block& block, char* shared, int64_t index) const {
        float *partial = reinterpret_cast<float*>(shared), *total = partial + block.threads;
        const int64_t channel = pieces.channel(index);
        block.each([&](int thread) {
            float sum = 0.f;
            pieces.each(block, index, thread, [&](const Row& row, int t) {
                float x[kChunk];
                product(Line(a, pieces.sequences, row, channel), Line(b, pieces.sequences, row, channel), t, x);
                gate(Line(c, pieces.sequences, row, channel), t, x);
                gate(Line(e, pieces.sequences, row, channel), t, x);
                sum += sum_of(x);
            });
            partial[thread] = sum;
            if (thread == 0) *total = 0.f;
        });
        add_up<1>(block, 1, block.threads, partial, total);
        block.each([&](int thread) {
            if (thread == 0) sums[pieces.tile(index) * pieces.channels + channel] = *total;
        });
    }
};

// The gradient of the short convolution: dz, and sums of the taps', the bias's and z_bias's gradients for each tile,
// (tiles, C, 4 groups + 2).
struct ShortConvBackward {
    static constexpr int kBlocksTogether = 1;
    static constexpr int kPositions = 16384;
    static constexpr int kTapSums = kTapGroup + 1;
    static constexpr int64_t width(int64_t taps) { return (taps + kTapGroup - 1) / kTapGroup * kTapGroup + 2; }
    Pieces pieces;
    Operand z, dy;  // z with its taps
    Array dz;
    float* sums = nullptr;

    int64_t blocks() const { return pieces.count(); }

    HYENA_DEVICE void operator()(const Block& block, char* shared, int64_t index) const {
        float *partial = reinterpret_cast<float*>(shared), *totals = partial + block.threads * kTapSums;
        const int64_t channel = pieces.channel(index);
        const int groups = (z.taps + kTapGroup - 1) / kTapGroup;
        float* out = sums + (pieces.tile(index) * pieces.channels + channel) * (groups * kTapGroup + 2);
        for (int g = 0; g < groups; ++g) {
            block.each([&](int thread) {
                float parts[kTapSums] = {};
                pieces.each(block, index, thread, [&](const Row& row, int t) {
                    const Line line(z, pieces.sequences, row, channel);
                    float x[kHalo + kChunk], y[kChunk];
                    if (g == 0)
                        window(line, t, line.kept(t), x);
                    else
                        line.raw<kHalo + kChunk>(t - g * kTapGroup - kHalo, x);
                    read_gradient(line, row, channel, t, y);
                    HYENA_UNROLL
                    for (int e = 0; e < kChunk; ++e) {
                        HYENA_UNROLL
                        for (int j = 0; j < kTapGroup; ++j)
                            if (g * kTapGroup + j < line.taps) parts[j] += y[e] * x[kHalo + e - j];
                        parts[kTapGroup] += y[e];
                    }
                });
                HYENA_UNROLL
                for (int k = 0; k < kTapSums; ++k) partial[k * block.threads + thread] = parts[k];
                if (thread < kTapSums) totals[thread] = 0.f;
            });
            add_up<kTapSums>(block, 1, block.threads, partial, totals);
            block.each([&](int thread) {
                if (thread < kTapGroup) out[g * kTapGroup + thread] = totals[thread];
                if (thread == kTapGroup && g == 0) out[groups * kTapGroup] = totals[thread];
            });
        }
        block.each([&](int thread) {
            float sum = 0.f;
            pieces.each(block, index, thread, [&](const Row& row, int t) {
                const Line line(z, pieces.sequences, row, channel);
                float dx[kChunk] = {};
                for (int g = 0; g < groups; ++g) {
                    float y[kChunk + kChunk];
                    read_gradient(line, row, channel, t + g * kTapGroup, y);
                    read_gradient(line, row, channel, t + g * kTapGroup + kChunk, y + kChunk);
                    HYENA_UNROLL
                    for (int j = 0; j < kTapGroup; ++j)
                        if (g * kTapGroup + j < line.taps) {
                            const float w = line.tap(g * kTapGroup + j);
                            HYENA_UNROLL
                            for (int e = 0; e < kChunk; ++e) dx[e] += w * y[e + j];
                        }
                }
                if (!line.inside(t, kChunk)) line.drop<kChunk>(t, dx);
                sum += sum_of(dx);
                Sink(dz, row, channel).put(t, dx);
            });
            partial[thread] = sum;
            if (thread == 0) *totals = 0.f;
        });
        add_up<1>(block, 1, block.threads, partial, totals);
        block.each([&](int thread) {
            if (thread == 0) out[groups * kTapGroup + 1] = *totals;
        });
    }

  private:
    // dy, masked as z's short convolution is.
    HYENA_DEVICE void read_gradient(const Line& line, const Row& row, int64_t channel, int t, float* y) const {
        Line(dy, pieces.sequences, row, channel).raw<kChunk>(t, y);
        if (!line.inside(t, kChunk)) line.drop<kChunk>(t, y);
    }
};

// Adds up what blocks left: out[o][k] = sum over i, w of in[i][o][w][k], as (outer, groups, width, inner) -> (groups,
// room), with zeros in the room beyond. In float64, so that nothing is lost however many there are. Each sum is shared
// by `lanes` threads of a block, each of which takes every lanes-th number; lanes follow from the shape alone, so that
// the order of a sum does too.
struct Reduce {
    static constexpr int kBlocksTogether = 1;
    // Numbers that are worth a thread, and neighbouring sums that a block has as far as there are: whole 128 bytes of
    // memory are read.
    static constexpr int64_t kLeast = 16, kNeighbours = 32;
    int64_t outer = 1, groups = 1, width = 1, inner = 1, room = 1;
    const float* in = nullptr;
    float* out = nullptr;
    int lanes = 1;

    Reduce(int64_t outer_, int64_t groups_, int64_t width_, int64_t inner_, int64_t room_, const float* in_,
           float* out_)
        : outer(outer_), groups(groups_), width(width_), inner(inner_), room(room_), in(in_), out(out_) {
        const int64_t neighbours = groups * room < kNeighbours ? groups * room : kNeighbours;
        while (outer * width >= 2 * lanes * kLeast && 2 * lanes * neighbours <= kMaxThreads) lanes *= 2;
    }

    static constexpr int kThreads = kMaxThreads;
    static constexpr int64_t kShared = kThreads * int64_t(sizeof(double));

    int64_t blocks() const { return (groups * room * lanes + kThreads - 1) / kThreads; }

    HYENA_DEVICE void operator()(const Block& block, char* shared, int64_t index) const {
        double* partial = reinterpret_cast<double*>(shared);
        const int sums = block.threads / lanes;
        block.each([&](int thread) {
            const int64_t at = index * sums + thread % sums, o = at / room, k = at % room, step = lanes / width,
                          rest = lanes % width;
            double sum = 0;
            int64_t i = thread / sums / width, w = thread / sums % width;
            if (o < groups && k < inner)
                while (i < outer) {
                    sum += in[((i * groups + o) * width + w) * inner + k];
                    i += step, w += rest;
                    if (w >= width) w -= width, ++i;
                }
            partial[thread] = sum;
        });
        for (int half = lanes / 2; half > 0; half /= 2)
            block.each([&](int thread) {
                if (thread < half * sums) partial[thread] += partial[thread + half * sums];
            });
        block.each([&](int thread) {
            const int64_t at = index * sums + thread;
            if (thread < sums && at < groups * room) out[at] = float(partial[thread]);
        });
    }
};

// Sums of the taps' gradients of `channels` channels, (channels, stride) from the position itself backwards and (at
// `bias` and `at_z_bias`) the bias's and z_bias's, as gradients of weight (channels, taps), bias (channels) and, if it
// is asked for, z_bias (channels).
struct TapGradients {
    static constexpr int kBlocksTogether = 1;
    int64_t channels = 0, stride = 0, bias = 0, at_z_bias = 0, taps = 0;
    const float *sums = nullptr, *z_bias = nullptr;
    float *dweight = nullptr, *dbias = nullptr, *dz_bias = nullptr;

    int64_t blocks() const { return (channels + kMaxThreads - 1) / kMaxThreads; }

    HYENA_DEVICE void operator()(const Block& block, char*, int64_t index) const {
        block.each([&](int thread) {
            const int64_t channel = index * block.threads + thread;
            if (channel >= channels) return;
            const float* own = sums + channel * stride;
            const float more = z_bias == nullptr ? 0.f : z_bias[channel] * own[bias];
            for (int64_t j = 0; j < taps; ++j) dweight[channel * taps + taps - 1 - j] = own[j] + more;
            dbias[channel] = own[bias];
            if (dz_bias != nullptr) dz_bias[channel] = own[at_z_bias];
        });
    }
};

}  // namespace hyena::cuda
