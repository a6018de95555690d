// A gated convolution of few taps, tap by tap, and its gradient: hyena::direct_conv.
//
// A tile of positions and what the taps reach of its neighbours is gated into a buffer in the first cache level; sums
// of several positions (or, for the gradient of the taps, of several lags) are held in registers.
#pragma once

#include "sharing.h"
#include "short_conv.h"

namespace hyena {
namespace {

constexpr int64_t kDirectTile = 256;
// Sums at once, as many as hide the latency of the multiplier; a power of two.
constexpr int kDirectSums = 8;

template <class T, class IO>
struct DirectConv {
    static constexpr int W = Simd<T>::W;
    const DirectConvArgs& a;
    const Blocks<T> blocks;
    const int64_t past, future;  // the largest lag, and how far the taps reach ahead

    explicit DirectConv(const DirectConvArgs& args)
        : a(args),
          blocks{args.channels, args.filters},
          past(args.causal ? args.taps - 1 : args.taps / 2),
          future(args.causal ? 0 : args.taps / 2) {}

    struct WorkMemory {
        const int64_t tile;  // vectors of a worker's buffer
        Memory<T> taps, product, gradient, sums;
        WorkMemory(const DirectConv& c, int parts, bool backward)
            : tile((kDirectTile + c.a.taps - 1 + kDirectSums) * W),
              taps((c.a.taps + 1) * W),
              product(tile * parts),
              gradient(backward ? tile * parts : 0),
              sums(backward ? c.sums_each() * parts : 0) {}
    };
    int64_t sums_each() const { return sums_size(a.taps, W); }

    struct Inputs {
        Channels<T, IO> v, pre, post;
        int64_t length;
        Inputs(const DirectConvArgs& a, const Row& row, Group group)
            : v(a.v, row, group), pre(a.pre, row, group), post(a.post, row, group), length(row.length) {}
        HYENA_INLINE Vec<T> product(int64_t t) const { return pre.data ? v[t] * pre[t] : v[t]; }
        HYENA_INLINE Vec<T> gated(int64_t t, Vec<T> x) const { return post.data ? x * post[t] : x; }
    };

    // Taps of a group's channels in lanes, lag -future first, and d behind them.
    void lay_out_taps(Group group, T* to) const {
        std::memset(to, 0, (a.taps + 1) * W * sizeof(T));
        for (int lane = 0; lane < group.lanes; ++lane) {
            const int64_t channel = group.first + lane, filter = channel / blocks.ratio();
            for (int64_t j = 0; j < a.taps; ++j) to[j * W + lane] = static_cast<const T*>(a.h)[j * a.filters + filter];
            if (a.d) to[a.taps * W + lane] = static_cast<const T*>(a.d)[channel];
        }
    }

    // Positions [begin, end), zero outside the row; room for the last, incomplete block of sums is zero too.
    template <class Read>
    static void fill(T* buffer, int64_t begin, int64_t end, int64_t length, Read&& read) {
        for (int64_t t = begin; t < end; ++t, buffer += W) store(buffer, t >= 0 && t < length ? read(t) : zero<T>());
        for (int i = 0; i < kDirectSums; ++i, buffer += W) store(buffer, zero<T>());
    }

    // The sum over taps of tap j times x at position i +- j (`sign`), for kDirectSums positions i from `x` on, handed
    // to `put(i, value)`.
    template <int Sign, class Put>
    HYENA_INLINE void convolve(const T* taps, const T* x, int64_t count, Put&& put) const {
        for (int64_t first = 0; first < count; first += kDirectSums) {
            Vec<T> sum[kDirectSums] = {};
            for (int64_t j = 0; j < a.taps; ++j) {
                const Vec<T> tap = load(taps + j * W);
                const T* at = x + (first + Sign * j) * W;
                HYENA_UNROLL
                for (int i = 0; i < kDirectSums; ++i) sum[i] += tap * load(at + i * W);
            }
            for (int i = 0; i < kDirectSums && first + i < count; ++i) put(first + i, sum[i]);
        }
    }

    template <class F>
    void each_tile(const Row& row, const Team& team, F&& f) const {
        team.over((row.length + kDirectTile - 1) / kDirectTile, [&](int64_t first, int64_t end, int part) {
            for (int64_t i = first; i < end; ++i) {
                const int64_t left = row.length - i * kDirectTile;
                f(i * kDirectTile, left < kDirectTile ? left : kDirectTile, part);
            }
        });
    }

    void forward() const {
        int64_t groups = 0;
        for (int64_t b = 0; b < blocks.count(); ++b) groups += blocks.groups(b);
        share(
            a.seq.pool, groups * a.seq.num_rows, [&](int parts) { return WorkMemory(*this, parts, false); },
            [&](int64_t task, const WorkMemory& m, Team team) {
                int64_t block = 0, i = task % groups;
                while (i >= blocks.groups(block)) i -= blocks.groups(block++);
                const Group group = blocks.group(block, i);
                const Row& row = a.seq.rows[task / groups];
                const T* taps = m.taps.get();
                lay_out_taps(group, m.taps.get());
                const Inputs in(a, row, group);
                const Channels<T, IO> y(a.y, row, group);
                each_tile(row, team, [&](int64_t t0, int64_t count, int part) {
                    T* x = m.product.get() + part * m.tile;
                    fill(x, t0 - past, t0 + count + future, row.length, [&](int64_t t) { return in.product(t); });
                    const Vec<T> d = load(taps + a.taps * W);
                    convolve<-1>(taps, x + (past + future) * W, count, [&](int64_t i, Vec<T> sum) HYENA_LAMBDA {
                        y.put(t0 + i, in.gated(t0 + i, sum + d * load(x + (past + i) * W)));
                    });
                });
            });
    }

    void backward() const {
        share(
            a.seq.pool, blocks.count(), [&](int parts) { return WorkMemory(*this, parts, true); },
            [&](int64_t block, const WorkMemory& m, Team team) {
                for (int64_t i = 0; i < blocks.groups(block); ++i) {
                    const Group group = blocks.group(block, i);
                    lay_out_taps(group, m.taps.get());
                    std::memset(m.sums.get(), 0, sums_each() * team.parts * sizeof(T));
                    for (int64_t r = 0; r < a.seq.num_rows; ++r) backward_row(a.seq.rows[r], group, m, team);
                    for (int part = 0; part < team.parts; ++part)
                        add_gradients(m.sums.get() + part * sums_each(), group);
                }
            });
    }

    void backward_row(const Row& row, Group group, const WorkMemory& m, const Team& team) const {
        const Inputs in(a, row, group);
        const Channels<T, IO> dy(a.dy, row, group), dv(a.dv, row, group), dpre(a.dpre, row, group),
            dpost(a.dpost, row, group);
        const T* taps = m.taps.get();
        const Vec<T> d = load(taps + a.taps * W);
        each_tile(row, team, [&](int64_t t0, int64_t count, int part) {
            T *x = m.product.get() + part * m.tile, *g = m.gradient.get() + part * m.tile;
            fill(x, t0 - past, t0 + count + future, row.length, [&](int64_t t) { return in.product(t); });
            fill(g, t0 - future, t0 + count + past, row.length, [&](int64_t t) { return in.gated(t, dy[t]); });
            const T *here = x + past * W, *gradient = g + future * W;
            if (a.post.data)
                convolve<-1>(taps, here + future * W, count, [&](int64_t i, Vec<T> sum) HYENA_LAMBDA {
                    dpost.put(t0 + i, (sum + d * load(here + i * W)) * dy[t0 + i]);
                });
            convolve<1>(taps, g, count, [&](int64_t i, Vec<T> sum) HYENA_LAMBDA {
                sum += d * load(gradient + i * W);
                dv.put(t0 + i, a.pre.data ? sum * in.pre[t0 + i] : sum);
                if (a.pre.data) dpre.put(t0 + i, sum * in.v[t0 + i]);
            });
            tap_gradients(here, gradient, count, m.sums.get() + part * sums_each());
        });
    }

    // Adds the tile's sums of gradient times input at every lag, and those for d.
    void tap_gradients(const T* x, const T* gradient, int64_t count, T* sums) const {
        for (int64_t t0 = 0; t0 < count; t0 += kSumBlock) {
            const int64_t t1 = t0 + kSumBlock < count ? t0 + kSumBlock : count;
            Vec<T> d = zero<T>();
            for (int64_t t = t0; t < t1; ++t) d += load(gradient + t * W) * load(x + t * W);
            add_to_sum<T>(sums, a.taps, d);
            int64_t j = 0;
            for (; j + kDirectSums <= a.taps; j += kDirectSums) {
                Vec<T> sum[kDirectSums] = {};
                for (int64_t t = t0; t < t1; ++t) {
                    const Vec<T> g = load(gradient + t * W);
                    HYENA_UNROLL
                    for (int i = 0; i < kDirectSums; ++i) sum[i] += g * load(x + (t + future - j - i) * W);
                }
                for (int i = 0; i < kDirectSums; ++i) add_to_sum<T>(sums, j + i, sum[i]);
            }
            for (; j < a.taps; ++j) {
                Vec<T> sum = zero<T>();
                for (int64_t t = t0; t < t1; ++t) sum += load(gradient + t * W) * load(x + (t + future - j) * W);
                add_to_sum<T>(sums, j, sum);
            }
        }
    }

    // A worker's sums into (taps, filters) and (channels) gradients: a block of filters has one writer.
    void add_gradients(const T* sums, Group group) const {
        for (int lane = 0; lane < group.lanes; ++lane) {
            const int64_t channel = group.first + lane, filter = channel / blocks.ratio();
            const auto sum = [&](int64_t k) { return sums[2 * k * W + lane] + sums[(2 * k + 1) * W + lane]; };
            for (int64_t j = 0; j < a.taps; ++j) static_cast<T*>(a.dh)[j * a.filters + filter] += sum(j);
            if (a.dd) static_cast<T*>(a.dd)[channel] += sum(a.taps);
        }
    }
};

}  // namespace
}  // namespace hyena
