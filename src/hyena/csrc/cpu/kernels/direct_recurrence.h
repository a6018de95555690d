// The mixing step from z to y with few taps, and its gradient: hyena::direct_recurrence.
//
// Short convolution, gates and taps in one pass: a tile of positions of a group of channels, and what the taps reach of
// its neighbours, is convolved and gated into a buffer in the first cache level, and the taps run over that. What
// neighbours share is computed twice, which costs less than a second pass over memory. Forward, a task is a tile and a
// group, and tiles follow each other: all groups of a tile lie in the same few pages of memory.
#pragma once

#include "direct_taps.h"
#include "sharing.h"
#include "short_parts.h"

namespace hyena {
namespace {

constexpr int64_t kMixingTile = 512;

template <class T, class IO>
struct DirectRecurrence {
    static constexpr int W = Simd<T>::W;
    using Parts = typename ShortParts<T, IO>::InRow;
    const DirectRecurrenceArgs& a;
    const DirectTaps<T> filter;
    const ShortParts<T, IO> z;

    explicit DirectRecurrence(const DirectRecurrenceArgs& args)
        : a(args),
          filter(args.h, args.d, args.taps, args.causal, args.channels, args.filters),
          z{args.seq, args.z, args.dz, args.short_filter, args.channels, args.order + 1} {}

    // Gates and value of a row: the value's own gate is there in order 2.
    struct Inputs {
        Convolved<T, IO> first, gate, value;
        bool gated;
        Ahead ahead;  // of gate and value
        Inputs(const DirectRecurrence& m, const Parts& parts)
            : first(parts[0]), gate(parts[m.a.order - 1]), value(parts[m.a.order]), gated(m.a.order > 1) {
            ahead.length = first.keep.length;
            ahead.add(value.z);
            if (gated) ahead.add(gate.z);
        }
    };

    // Gate times value, where the taps of positions [t0, t0 + count) reach.
    void fill(T* to, const Inputs& in, int64_t t0, int64_t count) const {
        const int64_t begin = t0 - filter.past, end = t0 + count + filter.future;
        if (in.gated)
            filter.fill(to, begin, end, in.ahead, [&](int64_t t) HYENA_LAMBDA { return in.gate[t] * in.value[t]; });
        else
            filter.fill(to, begin, end, in.ahead, [&](int64_t t) HYENA_LAMBDA { return in.value[t]; });
    }

    // ---- forward ------------------------------------------------------------------------------------------------

    // Tiles of all rows, by their number.
    struct Tiles {
        const Sequence& seq;
        Memory<int64_t> firsts;  // of each row, and how many there are
        explicit Tiles(const Sequence& s) : seq(s), firsts(s.num_rows + 1) {
            firsts.get()[0] = 0;
            for (int64_t r = 0; r < s.num_rows; ++r)
                firsts.get()[r + 1] = firsts.get()[r] + (s.rows[r].length + kMixingTile - 1) / kMixingTile;
        }
        int64_t count() const { return firsts.get()[seq.num_rows]; }
        int64_t row_of(int64_t tile) const {
            int64_t row = 0, end = seq.num_rows;
            while (end - row > 1) {
                const int64_t middle = (row + end) / 2;
                (firsts.get()[middle] <= tile ? row : end) = middle;
            }
            return row;
        }
    };

    struct ForwardMemory {
        Memory<T> product, taps, short_taps;
        explicit ForwardMemory(const DirectRecurrence& m)
            : product(m.filter.buffer(kMixingTile)), taps(m.filter.size()), short_taps(m.z.size()) {}
    };

    void forward() const {
        const Tiles tiles(a.seq);
        const int64_t groups = (a.channels + W - 1) / W;
        share(
            a.seq.pool, groups * tiles.count(), [&](int) { return ForwardMemory(*this); },
            [&](int64_t task, const ForwardMemory& m, const Team&) {
                const int64_t tile = task / groups, r = tiles.row_of(tile), c = task % groups * W;
                const int64_t left = a.channels - c;
                forward_tile(a.seq.rows[r], (tile - tiles.firsts.get()[r]) * kMixingTile,
                             Group{c, int(left < W ? left : W)}, m);
            });
    }

    void forward_tile(const Row& row, int64_t t0, Group group, const ForwardMemory& m) const {
        const int64_t left = row.length - t0, count = left < kMixingTile ? left : kMixingTile;
        filter.lay_out(group, m.taps.get());
        z.lay_out(group, m.short_taps.get());
        const Inputs in(*this, Parts{z, row, group, m.short_taps.get()});
        const Channels<T, IO> y(a.y, row, group);
        fill(m.product.get(), in, t0, count);
        const T *taps = m.taps.get(), *here = m.product.get() + filter.past * W;
        const Vec<T> d = load(taps + a.taps * W);
        filter.template convolve<-1>(taps, here + filter.future * W, count, [&](int64_t i, Vec<T> sum) HYENA_LAMBDA {
            y.put(t0 + i, in.first[t0 + i] * (sum + d * load(here + i * W)));
        });
    }

    // ---- backward -----------------------------------------------------------------------------------------------

    // A tile's dz is made of its own gradients behind the short convolution and of the next `reach`: those are computed
    // twice too, so that a tile goes from z and dy to dz within the caches.
    struct BackwardMemory {
        const int64_t positions, tile, grads;  // positions of a tile with reach, numbers of a worker's buffers
        Memory<T> product, gradient, taps, sums, short_taps, short_sums;
        Memory<T> grad;  // N + 1 interleaved arrays
        BackwardMemory(const DirectRecurrence& m, int parts)
            : positions(kMixingTile + m.reach()),
              tile(m.filter.buffer(positions)),
              grads(positions * m.z.count * W),
              product(tile * parts),
              gradient(tile * parts),
              taps(m.filter.size()),
              sums(m.filter.sums() * parts),
              short_taps(m.z.size()),
              short_sums(m.z.sums() * parts),
              grad(grads * parts) {}
    };
    int64_t reach() const { return z.filter.taps - 1; }

    void backward() const {
        share(
            a.seq.pool, filter.blocks.count(), [&](int parts) { return BackwardMemory(*this, parts); },
            [&](int64_t block, const BackwardMemory& m, const Team& team) {
                for (int64_t i = 0; i < filter.blocks.groups(block); ++i) {
                    const Group group = filter.blocks.group(block, i);
                    filter.lay_out(group, m.taps.get());
                    z.lay_out(group, m.short_taps.get());
                    std::memset(m.sums.get(), 0, filter.sums() * team.parts * sizeof(T));
                    for (int64_t r = 0; r < a.seq.num_rows; ++r) backward_row(a.seq.rows[r], group, m, team);
                    for (int part = 0; part < team.parts; ++part)
                        filter.add_gradients(m.sums.get() + part * filter.sums(), group, a.dh, a.dd);
                }
            });
    }

    void backward_row(const Row& row, Group group, const BackwardMemory& m, const Team& team) const {
        const Inputs in(*this, Parts{z, row, group, m.short_taps.get()});
        const Channels<T, IO> dy(a.dy, row, group);
        const T* taps = m.taps.get();
        const Vec<T> d = load(taps + a.taps * W);
        const int64_t past = filter.past, future = filter.future, step = z.count * W;
        Ahead of_dy;
        of_dy.length = row.length;
        of_dy.add(dy);
        of_dy.add(in.first.z);
        z.start(m.short_sums.get(), team.parts);
        each_tile(row.length, kMixingTile, team, [&](int64_t t0, int64_t count, int part) {
            const int64_t left = row.length - t0, all = count + reach() < left ? count + reach() : left;
            T *x = m.product.get() + part * m.tile, *g = m.gradient.get() + part * m.tile;
            T* grad = m.grad.get() + part * m.grads;
            fill(x, in, t0, all);
            filter.fill(g, t0 - future, t0 + all + past, of_dy,
                        // y is zero where nothing is kept, whatever its gradient is there.
                        [&](int64_t t) HYENA_LAMBDA { return in.first.keep[t] ? dy[t] * in.first[t] : zero<T>(); });
            const T *here = x + past * W, *gradient = g + future * W;
            filter.template convolve<-1>(taps, here + future * W, all, [&](int64_t i, Vec<T> sum) HYENA_LAMBDA {
                store(grad + i * step, (sum + d * load(here + i * W)) * dy[t0 + i]);
            });
            filter.template convolve<1>(taps, g, all, [&](int64_t i, Vec<T> sum) HYENA_LAMBDA {
                sum += d * load(gradient + i * W);
                store(grad + i * step + a.order * W, in.gated ? sum * in.gate[t0 + i] : sum);
                if (in.gated) store(grad + i * step + W, sum * in.value[t0 + i]);
            });
            filter.add_sums_of(here, gradient, count, m.sums.get() + part * filter.sums());
            if (in.first.keep.mask)
                for (int64_t i = 0; i < all; ++i)
                    if (!in.first.keep[t0 + i]) std::memset(grad + i * step, 0, size_t(step) * sizeof(T));
            z.backward_span(
                row, group, m.short_taps.get(),
                [&](int64_t p) { return Runs<T>{grad + p * W - t0 * step, step, row.length, 0}; },
                m.short_sums.get() + part * z.sums(), t0, t0 + count);
        });
        z.add(m.short_sums.get(), team.parts, group, a.dweight, a.dbias);
    }
};

}  // namespace
}  // namespace hyena
