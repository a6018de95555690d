// A bias of every channel added to an array, and its gradient, the sum over all positions.
#pragma once

#include "../simd/ahead.h"
#include "sequences.h"
#include "work.h"

namespace hyena {
namespace {

// Positions of a task, and of one of a sum's parts.
constexpr int64_t kBiasTile = 64;

template <class T, class IO>
struct ChannelBias {
    static constexpr int W = Simd<T>::W;
    const ChannelBiasArgs& a;

    int64_t groups() const { return (a.channels + W - 1) / W; }
    Group group(int64_t i) const {
        const int64_t left = a.channels - i * W;
        return {i * W, int(left < W ? left : W)};
    }
    int64_t tiles() const { return (a.length + kBiasTile - 1) / kBiasTile; }
    static int64_t end_of(int64_t t0, int64_t length) { return t0 + kBiasTile < length ? t0 + kBiasTile : length; }

    // y = x + bias.
    void forward() const {
        const T* bias = static_cast<const T*>(a.bias);
        run(a.pool, a.batch * tiles(), [&](int64_t task) {
            const Row row{task / tiles(), 0, a.length};
            const int64_t t0 = task % tiles() * kBiasTile, t1 = end_of(t0, a.length);
            for (int64_t i = 0; i < groups(); ++i) {
                const Group g = group(i);
                const Channels<T, IO> x(a.x, row, g);
                const Channels<T, T> y(a.y, row, g);
                const Vec<T> b = load_lanes<T>(bias + g.first, g.lanes);
                for (int64_t t = t0; t < t1; ++t) y.put(t, x[t] + b);
            }
        });
    }

    // dbias, the sum of x: of a group of channels by one worker, or by all in parts whose number does not depend on
    // when they run.
    void backward() const {
        share(
            a.pool, groups(), [&](int parts) { return Memory<T>(2 * W * parts); },
            [&](int64_t i, const Memory<T>& sums, Team team) {
                const Group g = group(i);
                team.over(a.batch * tiles(), [&](int64_t first, int64_t end, int part) {
                    BlockedSum<T> sum;
                    for (int64_t tile = first; tile < end; ++tile) {
                        const Channels<T, IO> x(a.x, Row{tile / tiles(), 0, a.length}, g);
                        const int64_t t0 = tile % tiles() * kBiasTile, t1 = end_of(t0, a.length);
                        Ahead ahead;
                        ahead.length = t1;
                        ahead.add(x);
                        for (int64_t t = t0; t < t1; ++t) {
                            ahead(t + kReadAhead);
                            sum.add(x[t]);
                        }
                    }
                    LongSum<T> all = sum.blocks;
                    all.add(sum.block);
                    store(sums.get() + 2 * part * W, all.total);
                    store(sums.get() + (2 * part + 1) * W, all.left_out);
                });
                LongSum<T> all;
                for (int part = 0; part < team.parts; ++part) {
                    all.add(load(sums.get() + 2 * part * W));
                    all.left_out += load(sums.get() + (2 * part + 1) * W);
                }
                store_lanes<T>(static_cast<T*>(a.dbias) + g.first, all.value(), g.lanes);
            });
    }
};

}  // namespace
}  // namespace hyena
