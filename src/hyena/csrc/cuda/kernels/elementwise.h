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

    // begin(row)(t) for the thread's chunks of a block.
    template <class Begin>
    HYENA_DEVICE void each(const Block& block, int64_t index, int thread, Begin&& begin) const {
        tiles.chunks(sequences, tile(index), positions, block, thread, begin);
    }
    HYENA_DEVICE Line line(const Operand& operand, const Row& row, int64_t channel) const {
        return Line(operand, sequences, row, uint32_t(channel));
    }
};

// y = a * b, each behind its short convolution; b may be missing.
struct Multiply {
    static constexpr int kBlocksTogether = 2;
    static constexpr int kPositions = 2048;
    Pieces pieces;
    Operand a, b;
    Array y;

    int64_t blocks() const { return pieces.count(); }

    HYENA_DEVICE void operator()(const Block& block, char*, int64_t index) const {
        const int64_t channel = pieces.channel(index);
        block.each([&](int thread) {
            pieces.each(block, index, thread, [&](const Row& row) {
                return [first = pieces.line(a, row, channel), second = pieces.line(b, row, channel),
                        to = Sink(y, row, channel)](int t) {
                    float x[kChunk];
                    product(first, second, t, x);
                    to.put(t, x);
                };
            });
        });
    }
};

// Sums over positions of a * b * c * e, all but a perhaps missing: (tiles, C).
struct Dot {
    static constexpr int kBlocksTogether = 2;
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
            pieces.each(block, index, thread, [&](const Row& row) {
                return [&sum, first = pieces.line(a, row, channel), second = pieces.line(b, row, channel),
                        third = pieces.line(c, row, channel), fourth = pieces.line(e, row, channel)](int t) {
                    float x[kChunk];
                    product(first, second, t, x);
                    gate(third, t, x);
                    gate(fourth, t, x);
                    sum += sum_of(x);
                };
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
    static constexpr int kBlocksTogether = 3;
    static constexpr int kPositions = 16384;
    static constexpr int kThreadSums = kTapGroup + 2;  // of a group of taps; with the first also bias and z_bias
    static constexpr int64_t width(int64_t taps) { return (taps + kTapGroup - 1) / kTapGroup * kTapGroup + 2; }
    static constexpr int64_t shared(int threads) { return (threads + 1) * kThreadSums * int64_t(sizeof(float)); }
    Pieces pieces;
    Operand z, dy;  // z with its taps
    Array dz;
    float* sums = nullptr;

    int64_t blocks() const { return pieces.count(); }

    HYENA_DEVICE void operator()(const Block& block, char* shared, int64_t index) const {
        float *partial = reinterpret_cast<float*>(shared), *totals = partial + block.threads * kThreadSums;
        const int64_t channel = pieces.channel(index);
        const int groups = (z.taps + kTapGroup - 1) / kTapGroup;
        float* out = sums + (pieces.tile(index) * pieces.channels + channel) * (groups * kTapGroup + 2);
        block.each([&](int thread) {
            float parts[kThreadSums] = {};
            pieces.each(block, index, thread, [&](const Row& row) {
                return [&parts, groups, line = pieces.line(z, row, channel), up = pieces.line(dy, row, channel),
                        to = Sink(dz, row, channel)](int t) { all_but_other_taps(line, up, to, t, groups, parts); };
            });
            leave<kThreadSums>(block, thread, parts, partial, totals);
        });
        add_up<kThreadSums>(block, 1, block.threads, partial, totals);
        block.each([&](int thread) {
            if (thread < kTapGroup) out[thread] = totals[thread];
            if (thread >= kTapGroup && thread < kThreadSums) out[(groups - 1) * kTapGroup + thread] = totals[thread];
        });
        for (int g = 1; g < groups; ++g) {
            block.each([&](int thread) {
                float parts[kTapGroup] = {};
                pieces.each(block, index, thread, [&](const Row& row) {
                    return [&parts, g, line = pieces.line(z, row, channel), up = pieces.line(dy, row, channel)](int t) {
                        float x[kHalo + kChunk], y[kChunk];
                        line.raw<kHalo + kChunk>(t - g * kTapGroup - kHalo, x);
                        chunk(up, t, y);
                        only<4, kChunk>(line.kept(t), 0.f, y);
                        tap_sums(line, g, x, y, parts);
                    };
                });
                leave<kTapGroup>(block, thread, parts, partial, totals);
            });
            add_up<kTapGroup>(block, 1, block.threads, partial, totals);
            block.each([&](int thread) {
                if (thread < kTapGroup) out[g * kTapGroup + thread] = totals[thread];
            });
        }
    }

  private:
    // dz of a chunk, and what it adds to the sums of the first group of taps, the bias and z_bias.
    HYENA_DEVICE static void all_but_other_taps(const Line& line, const Line& up, const Sink& to, int t, int groups,
                                                float* parts) {
        float x[kHalo + kChunk], y[kChunk + kHalo], dx[kChunk] = {};
        const uint32_t kept = line.kept(t);
        window(line, t, kept, x);
        ahead(up, t, y);
        only<4, kChunk + kHalo>(kept, 0.f, y);
        tap_sums(line, 0, x, y, parts);
        parts[kTapGroup] += sum_of(y);
        for (int g = 0; g < groups; ++g) {
            if (g > 0) {
                const int at = t + g * kTapGroup;
                up.raw<kChunk + kHalo>(at, y);
                if (!line.inside(at, kChunk + kHalo)) line.drop<kChunk + kHalo>(at, y);
            }
            HYENA_UNROLL
            for (int j = 0; j < kTapGroup; ++j)
                if (g * kTapGroup + j < line.taps) {
                    const float w = g == 0 ? line.w[j] : line.tap(g * kTapGroup + j);
                    HYENA_UNROLL
                    for (int e = 0; e < kChunk; ++e) dx[e] += w * y[e + j];
                }
        }
        only<4, kChunk>(kept, 0.f, dx);
        parts[kTapGroup + 1] += sum_of(dx);
        to.put(t, dx);
    }

    HYENA_DEVICE static void tap_sums(const Line& line, int group, const float* x, const float* y, float* parts) {
        HYENA_UNROLL
        for (int j = 0; j < kTapGroup; ++j)
            if (group * kTapGroup + j < line.taps) {
                HYENA_UNROLL
                for (int e = 0; e < kChunk; ++e) parts[j] += y[e] * x[kHalo + e - j];
            }
    }

    template <int kSums>
    HYENA_DEVICE static void leave(const Block& block, int thread, const float* parts, float* partial, float* totals) {
        HYENA_UNROLL
        for (int k = 0; k < kSums; ++k) partial[k * block.threads + thread] = parts[k];
        if (thread < kSums) totals[thread] = 0.f;
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
