// A gated convolution of few taps, tap by tap, and its gradient: hyena::direct_conv.
//
// A tile of positions and what the taps reach of its neighbours is gated into a buffer in the first cache level.
#pragma once

#include "direct_taps.h"
#include "sharing.h"

namespace hyena {
namespace {

constexpr int64_t kDirectTile = 256;

template <class T, class IO>
struct DirectConv {
    static constexpr int W = Simd<T>::W;
    const DirectConvArgs& a;
    const DirectTaps<T> filter;

    explicit DirectConv(const DirectConvArgs& args)
        : a(args), filter(args.h, args.d, args.taps, args.causal, args.channels, args.filters) {}

    struct WorkMemory {
        const int64_t tile;  // numbers of a worker's buffer
        Memory<T> taps, product, gradient, sums;
        WorkMemory(const DirectTaps<T>& filter, int parts, bool backward)
            : tile(filter.buffer(kDirectTile)),
              taps(filter.size()),
              product(tile * parts),
              gradient(backward ? tile * parts : 0),
              sums(backward ? filter.sums() * parts : 0) {}
    };

    struct Inputs {
        Channels<T, IO> v, pre, post;
        Inputs(const DirectConvArgs& a, const Row& row, Group group)
            : v(a.v, row, group), pre(a.pre, row, group), post(a.post, row, group) {}
        HYENA_INLINE Vec<T> product(int64_t t) const { return pre.data ? v[t] * pre[t] : v[t]; }
        HYENA_INLINE Vec<T> gated(int64_t t, Vec<T> x) const { return post.data ? x * post[t] : x; }
        Ahead ahead(int64_t length) const {
            Ahead them;
            them.length = length;
            them.add(v);
            if (pre.data) them.add(pre);
            return them;
        }
    };

    void forward() const {
        share_rows(
            a.seq, filter.blocks, true, true, [&](int parts) { return WorkMemory(filter, parts, false); },
            [&](const Row& row, int64_t, Group group, const WorkMemory& m, const Team& team) {
                const T* taps = m.taps.get();
                filter.lay_out(group, m.taps.get());
                const Inputs in(a, row, group);
                const Channels<T, IO> y(a.y, row, group);
                each_tile(row.length, kDirectTile, team, [&](int64_t t0, int64_t count, int part) {
                    T* x = m.product.get() + part * m.tile;
                    filter.fill(x, t0 - filter.past, t0 + count + filter.future, in.ahead(row.length),
                                [&](int64_t t) { return in.product(t); });
                    const T* here = x + filter.past * W;
                    const Vec<T> d = load(taps + a.taps * W);
                    filter.template convolve<-1>(taps, here + filter.future * W, count,
                                                 [&](int64_t i, Vec<T> sum) HYENA_LAMBDA {
                                                     y.put(t0 + i, in.gated(t0 + i, sum + d * load(here + i * W)));
                                                 });
                });
            });
    }

    void backward() const {
        share(
            a.seq.pool, filter.blocks.count(), [&](int parts) { return WorkMemory(filter, parts, true); },
            [&](int64_t block, const WorkMemory& m, Team team) {
                for (int64_t i = 0; i < filter.blocks.groups(block); ++i) {
                    const Group group = filter.blocks.group(block, i);
                    filter.lay_out(group, m.taps.get());
                    std::memset(m.sums.get(), 0, filter.sums() * team.parts * sizeof(T));
                    for (int64_t r = 0; r < a.seq.num_rows; ++r) backward_row(a.seq.rows[r], group, m, team);
                    for (int part = 0; part < team.parts; ++part)
                        filter.add_gradients(m.sums.get() + part * filter.sums(), group, a.dh, a.dd);
                }
            });
    }

    void backward_row(const Row& row, Group group, const WorkMemory& m, const Team& team) const {
        const Inputs in(a, row, group);
        const Channels<T, IO> dy(a.dy, row, group), dv(a.dv, row, group), dpre(a.dpre, row, group),
            dpost(a.dpost, row, group);
        const T* taps = m.taps.get();
        const Vec<T> d = load(taps + a.taps * W);
        const int64_t past = filter.past, future = filter.future;
        Ahead of_dy;
        of_dy.length = row.length;
        of_dy.add(dy);
        if (in.post.data) of_dy.add(in.post);
        each_tile(row.length, kDirectTile, team, [&](int64_t t0, int64_t count, int part) {
            T *x = m.product.get() + part * m.tile, *g = m.gradient.get() + part * m.tile;
            filter.fill(x, t0 - past, t0 + count + future, in.ahead(row.length),
                        [&](int64_t t) { return in.product(t); });
            filter.fill(g, t0 - future, t0 + count + past, of_dy, [&](int64_t t) { return in.gated(t, dy[t]); });
            const T *here = x + past * W, *gradient = g + future * W;
            if (a.post.data)
                filter.template convolve<-1>(taps, here + future * W, count, [&](int64_t i, Vec<T> sum) HYENA_LAMBDA {
                    dpost.put(t0 + i, (sum + d * load(here + i * W)) * dy[t0 + i]);
                });
            filter.template convolve<1>(taps, g, count, [&](int64_t i, Vec<T> sum) HYENA_LAMBDA {
                sum += d * load(gradient + i * W);
                dv.put(t0 + i, a.pre.data ? sum * in.pre[t0 + i] : sum);
                if (a.pre.data) dpre.put(t0 + i, sum * in.v[t0 + i]);
            });
            filter.add_sums_of(here, gradient, count, m.sums.get() + part * filter.sums());
        });
    }
};

}  // namespace
}  // namespace hyena
