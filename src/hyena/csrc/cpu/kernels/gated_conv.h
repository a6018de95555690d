// A long convolution between two gates, and its gradient: hyena::gated_conv.
#pragma once

#include "products.h"

namespace hyena {
namespace {

template <class T, class IO>
struct GatedConv {
    static constexpr int W = Simd<T>::W, S = 2 * W;
    const GatedConvArgs& a;
    const HeldPlan<T> plan;
    const Passes<T> passes;
    const Blocks<T> blocks;
    const int64_t sections;  // of the longest row

    explicit GatedConv(const GatedConvArgs& args)
        : a(args),
          plan(args.spectra.points),
          passes{*plan},
          blocks{args.channels, args.spectra.channels},
          sections(most_sections(args.seq, args.spectra.points)) {}

    Products<T> products_of(int64_t block, Group group) const {
        return {passes, SpectrumOf<T>(a.spectra, 0, blocks, block, group), skip_of<T>(a.d, 0, group, passes.plan.size)};
    }

    struct WorkMemory {
        Memory<T> buffer, input, local, skips, tail;
        WorkMemory(const GatedConv& g, int parts, bool backward)
            : buffer(g.passes.buffer() * S),
              input(backward ? g.passes.buffer() * S : 0),
              local(g.passes.scratch() * S * parts),
              skips(W * parts),
              tail(g.sections > 1 ? g.passes.plan.size * W : 0) {}
    };

    Tail<T> tail_of(const WorkMemory& m) const { return {sections > 1 ? m.tail.get() : nullptr}; }

    struct Inputs {
        Channels<T, IO> v, pre, post;
        Inputs(const GatedConvArgs& a, const Row& row, Group group)
            : v(a.v, row, group), pre(a.pre, row, group), post(a.post, row, group) {}
        HYENA_INLINE Vec<T> product(int64_t t) const { return pre.data ? v[t] * pre[t] : v[t]; }
        HYENA_INLINE Vec<T> gated(int64_t t, Vec<T> x) const { return post.data ? x * post[t] : x; }
    };

    void read_product(T* buffer, const Row& row, const Inputs& in, const WorkMemory& m, const Team& team) const {
        Ahead ahead;
        ahead.add(in.v);
        if (in.pre.data) ahead.add(in.pre);
        ahead.length = row.length;
        team.over(passes.p2(), [&](int64_t c0, int64_t c1, int part) {
            passes.columns_in(
                buffer, c0, c1, m.local.get() + part * passes.scratch() * S,
                [&](int64_t t) HYENA_LAMBDA { return t < row.length ? in.product(t) : zero<T>(); }, ahead);
        });
    }

    void forward() const {
        share_rows(
            a.seq, blocks, sections == 1, false, [&](int parts) { return WorkMemory(*this, parts, false); },
            [&](const Row& row, int64_t block, Group group, const WorkMemory& memory, const Team& team) {
                forward_task(row, block, group, memory, team);
            });
    }

    void forward_task(const Row& whole, int64_t block, Group group, const WorkMemory& m, const Team& team) const {
        const bool past_caches = a.seq.num_rows * whole.length * a.channels * int64_t(sizeof(IO)) > kResultInCache;
        const int64_t points = passes.plan.size;
        tail_of(m).start(points);
        for (int64_t first = 0; first < whole.length; first += points)
            forward_section(section(whole, first, points), block, group, m, team, past_caches);
    }

    void forward_section(const Row& row, int64_t block, Group group, const WorkMemory& m, const Team& team,
                         bool past_caches) const {
        T* buffer = m.buffer.get();
        const Inputs in(a, row, group);
        const Channels<T, IO> y(a.y, row, group);
        const Tail<T> tail = tail_of(m);
        Ahead out;
        out.length = row.length;
        if (in.post.data) out.add(in.post);
        if (!past_caches) out.add(y);
        read_product(buffer, row, in, m, team);
        const Products<T> products = products_of(block, group);
        team.over(passes.p1(), [&](int64_t r0, int64_t r1, int) { products.convolve(buffer, r0, r1); });
        team.over(passes.p2(), [&](int64_t c0, int64_t c1, int part) {
            T* local = m.local.get() + part * passes.scratch() * S;
            if (a.positions_added > 0) {
                Ahead ahead;
                ahead.add(y);
                ahead.length = a.positions_added;
                passes.columns_out(
                    buffer, c0, c1, local,
                    [&](int64_t t, Cx<T> v) HYENA_LAMBDA {
                        if (t < a.positions_added) y.put(t, y[t] + v.re);
                    },
                    ahead);
            } else
                passes.columns_out(
                    buffer, c0, c1, local,
                    [&](int64_t t, Cx<T> v) HYENA_LAMBDA {
                        const Vec<T> x = tail.joined(t, v);
                        if (t < row.length) y.put(t, in.gated(t, x), past_caches);
                    },
                    out);
        });
    }

    void backward() const {
        share_blocks(
            a.seq, blocks, sections == 1, a.dspectra, [&](int parts) { return WorkMemory(*this, parts, true); },
            [&](const Row& row, int64_t block, Group group, const WorkMemory& memory, const Team& team,
                bool overwrite) { backward_task(row, block, group, memory, team, overwrite); });
    }

    void backward_task(const Row& whole, int64_t block, Group group, const WorkMemory& m, const Team& team,
                       bool overwrite) const {
        const int64_t points = passes.plan.size;
        SpectrumOf<T> dspectrum(a.dspectra, 0, blocks, block, group);
        tail_of(m).start(points);
        for (int64_t first = 0; first < whole.length; first += points) {
            dspectrum.start(overwrite && first == 0, a.seq.num_rows * sections);
            backward_section(section(whole, first, points), whole.length - first, block, group, m, team, dspectrum);
        }
    }

    // `left`: positions from the section's first one to the end of its row.
    void backward_section(const Row& row, int64_t left, int64_t block, Group group, const WorkMemory& m,
                          const Team& team, const SpectrumOf<T>& dspectrum) const {
        T *buffer = m.buffer.get(), *input = m.input.get();
        const Inputs in(a, row, group);
        const Channels<T, IO> dy(a.dy, row, group), dv(a.dv, row, group), dpre(a.dpre, row, group),
            dpost(a.dpost, row, group);
        read_product(input, row, in, m, team);
        Ahead of_dy, of_output, of_input;
        of_dy.length = of_output.length = of_input.length = row.length;
        of_dy.add(dy);
        of_output.add(dy);
        of_input.add(dv);
        if (in.post.data) {
            of_dy.add(in.post);
            of_output.add(dpost);
        }
        if (in.pre.data) {
            of_input.add(in.pre);
            of_input.add(in.v);
            of_input.add(dpre);
        }
        const int64_t points = passes.plan.size;
        team.over(passes.p2(), [&](int64_t c0, int64_t c1, int part) {
            BlockedSum<T> skip;
            T* local = m.local.get() + part * passes.scratch() * S;
            const auto gradient = [&](int64_t t) HYENA_LAMBDA {
                if (t >= row.length) return zero<T>();
                const Vec<T> g = in.gated(t, dy[t]);
                if (a.dd) skip.add(g * in.product(t));
                return g;
            };
            if (left <= points)
                passes.columns_in(buffer, c0, c1, local, gradient, of_dy);
            else
                passes.columns_in(
                    buffer, c0, c1, local,
                    [&](int64_t t) HYENA_LAMBDA {
                        const int64_t next = t + points;
                        return Cx<T>{gradient(t), next < left ? in.gated(next, dy[next]) : zero<T>()};
                    },
                    of_dy);
            store(m.skips.get() + part * W, skip.value());
        });
        if (a.dd) add_skips(m.skips.get(), team.parts, static_cast<T*>(a.dd) + group.first, group.lanes);
        const bool want_output = in.post.data != nullptr;  // whether the convolution itself is needed
        if (!want_output)
            team.over(passes.p1(), [&](int64_t r0, int64_t r1, int) {
                passes.rows_in(input, r0, r1, [](int64_t, Cx<T> x) HYENA_LAMBDA { return x; });
            });
        backward_rows(products_of(block, group), input, buffer, want_output, dspectrum, team);
        const Tail<T> tail = tail_of(m);
        team.over(passes.p2(), [&](int64_t c0, int64_t c1, int part) {
            T* local = m.local.get() + part * passes.scratch() * S;
            passes.columns_out(
                buffer, c0, c1, local,
                [&](int64_t t, Cx<T> v) HYENA_LAMBDA {
                    if (t >= row.length) return;
                    dv.put(t, in.pre.data ? v.re * in.pre[t] : v.re);
                    if (in.pre.data) dpre.put(t, v.re * in.v[t]);
                },
                of_input);
            if (in.post.data)
                passes.columns_out(
                    input, c0, c1, local,
                    [&](int64_t t, Cx<T> v) HYENA_LAMBDA {
                        const Vec<T> x = tail.joined(t, v);
                        if (t < row.length) dpost.put(t, x * dy[t]);
                    },
                    of_output);
        });
    }
};

}  // namespace
}  // namespace hyena
