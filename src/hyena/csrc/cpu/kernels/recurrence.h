// The whole mixing step from z to y, and its gradient: hyena::recurrence.
//
// One task is a row and a group of W channels (forward), or a block of filters and all rows that use them (backward, so
// that every sum over the batch has one writer and one order). A task's data stays in its thread's cache from the load
// of z to the store of y.
#pragma once

#include "products.h"
#include "short_parts.h"

namespace hyena {
namespace {

// Spectra up to this size (bytes) are taken to stay in the last cache level from one row to the next.
constexpr int64_t kSpectraInCache = int64_t(4) << 20;

template <class T, class IO>
struct Recurrence {
    static constexpr int W = Simd<T>::W, S = 2 * W;
    const RecurrenceArgs& a;
    const HeldPlan<T> plan;
    const Passes<T> passes;
    const Blocks<T> blocks;
    const ShortParts<T, IO> z;
    const bool value_filter;
    using Parts = typename ShortParts<T, IO>::InRow;

    explicit Recurrence(const RecurrenceArgs& args)
        : a(args),
          plan(args.spectra.points),
          passes{*plan},
          blocks{args.channels, args.spectra.channels},
          z{args.seq, args.z, args.dz, args.short_filter, args.channels, args.order + 1},
          value_filter(args.spectra.filters == args.order) {}

    // The gate that step i of the recurrence multiplies by, or -1 for the value filter.
    int64_t gate_of(int64_t i) const {
        const int64_t step = value_filter ? i - 1 : i;
        return step < 0 ? -1 : a.order - 1 - step;
    }

    Products<T> products_of(int64_t i, int64_t block, Group group) const {
        return {passes, SpectrumOf<T>(a.spectra, i, blocks, block, group),
                skip_of<T>(a.d, i * a.channels, group, passes.plan.size)};
    }

    // ---- forward ------------------------------------------------------------------------------------------------

    struct ForwardMemory {
        Memory<T> buffer, local, taps, between;
        ForwardMemory(const Recurrence& m, int parts)
            : buffer(m.passes.buffer() * S),
              local(m.passes.scratch() * S * parts),
              taps(m.z.size()),
              between(m.a.spectra.filters > 1 ? m.passes.plan.size * W : 0) {}
    };

    void forward() const {
        // Neighbouring tasks share a row, whose channels are neighbours in memory, as long as all spectra stay in a
        // cache anyway; otherwise they share a group's spectrum.
        const bool by_row = a.spectra.channels * a.spectra.points * int64_t(2 * sizeof(T)) <= kSpectraInCache;
        share_rows(
            a.seq, blocks, by_row, [&](int parts) { return ForwardMemory(*this, parts); },
            [&](const Row& row, int64_t block, Group group, const ForwardMemory& memory, const Team& team) {
                forward_task(row, block, group, memory, team);
            });
    }

    void forward_task(const Row& row, int64_t block, Group group, const ForwardMemory& memory, const Team& team) const {
        T* buffer = memory.buffer.get();
        T* between = memory.between.get();
        z.lay_out(group, memory.taps.get());
        const Parts parts{z, row, group, memory.taps.get()};
        const Channels<T, IO> y(a.y, row, group);
        const auto first = parts[0], value = parts[a.order];
        const int64_t filters = a.spectra.filters;
        // A long result is out of the caches again before anybody reads it: written past them, it need not be fetched
        // first, and leaves the transform's buffer where it is.
        const bool past_caches = a.seq.num_rows * row.length * a.channels * int64_t(sizeof(IO)) > kResultInCache;
        Ahead in, out;
        in.length = out.length = row.length;
        in.add(value.z);
        out.add(first.z);
        if (!past_caches) out.add(y);
        if (gate_of(0) >= 0) in.add(parts[gate_of(0)].z);
        if (filters == 0) {
            team.over(row.length, [&](int64_t t0, int64_t t1, int) {
                for (int64_t t = t0; t < t1; ++t) y.put(t, first[t] * value[t]);
            });
            return;
        }
        for (int64_t i = 0; i < filters; ++i) {
            const int64_t g = gate_of(i);
            const auto gate = parts[g < 0 ? 0 : g];
            team.over(passes.p2(), [&](int64_t c0, int64_t c1, int part) {
                T* local = memory.local.get() + part * passes.scratch() * S;
                if (i == 0 && g >= 0)
                    passes.columns_in(
                        buffer, c0, c1, local, [&](int64_t t) HYENA_LAMBDA { return gate[t] * value[t]; }, in);
                else if (i == 0)
                    passes.columns_in(buffer, c0, c1, local, [&](int64_t t) HYENA_LAMBDA { return value[t]; }, in);
                else
                    passes.columns_in(buffer, c0, c1, local,
                                      [&](int64_t t) HYENA_LAMBDA { return gate[t] * load(between + t * W); });
            });
            const Products<T> products = products_of(i, block, group);
            team.over(passes.p1(), [&](int64_t r0, int64_t r1, int) { products.convolve(buffer, r0, r1); });
            team.over(passes.p2(), [&](int64_t c0, int64_t c1, int part) {
                T* local = memory.local.get() + part * passes.scratch() * S;
                if (i + 1 < filters)
                    passes.columns_out(buffer, c0, c1, local,
                                       [&](int64_t t, Cx<T> v) HYENA_LAMBDA { store(between + t * W, v.re); });
                else
                    passes.columns_out(
                        buffer, c0, c1, local,
                        [&](int64_t t, Cx<T> v) HYENA_LAMBDA {
                            if (t < row.length) y.put(t, first[t] * v.re, past_caches);
                        },
                        out);
            });
        }
    }

    // ---- backward -----------------------------------------------------------------------------------------------

    struct BackwardMemory {
        const int64_t points, filters, parts_of_z;
        Memory<T> spectra;  // F buffers: the transform of each convolution's input
        Memory<T> buffer;   // transforms of gradients
        Memory<T> values;   // F - 1 arrays: the value after each convolution but the last
        Memory<T> flow;     // the gradient of the value between two steps
        Memory<T> grad;     // N + 1 interleaved arrays: the gradient of z after the short convolution
        Memory<T> local, taps, sums, skips;
        BackwardMemory(const Recurrence& m, int parts)
            : points(m.passes.plan.size),
              filters(m.a.spectra.filters),
              parts_of_z(m.a.order + 1),
              spectra(filters * m.passes.buffer() * S),
              buffer(m.passes.buffer() * S),
              values(filters > 1 ? (filters - 1) * points * W : 0),
              flow(filters > 1 ? points * W : 0),
              grad(parts_of_z * points * W),
              local(m.passes.scratch() * S * parts),
              taps(m.z.size()),
              sums(m.z.sums() * parts),
              skips(W * parts) {}
    };

    void backward() const {
        share_blocks(
            a.seq, blocks, a.dspectra, [&](int parts) { return BackwardMemory(*this, parts); },
            [&](const Row& row, int64_t block, Group group, const BackwardMemory& memory, const Team& team,
                bool overwrite) { backward_task(row, block, group, memory, team, overwrite); });
    }

    void backward_task(const Row& row, int64_t block, Group group, const BackwardMemory& m, const Team& team,
                       bool overwrite) const {
        z.lay_out(group, m.taps.get());
        const Parts parts{z, row, group, m.taps.get()};
        const Channels<T, IO> dy(a.dy, row, group);
        const int64_t filters = a.spectra.filters, order = a.order, step = (order + 1) * W;
        T* grad = m.grad.get();
        T* buffer = m.buffer.get();
        T* flow = m.flow.get();
        const auto first = parts[0], value = parts[order];
        if (filters == 0)
            team.over(row.length, [&](int64_t t0, int64_t t1, int) {
                for (int64_t t = t0; t < t1; ++t) {
                    const Vec<T> g = dy[t];
                    store(grad + t * step, g * value[t]);
                    store(grad + t * step + W, g * first[t]);
                }
            });
        for (int64_t i = 0; i < filters; ++i) forward_again(i, block, group, parts, m, team);
        for (int64_t i = filters - 1; i >= 0; --i) {
            const bool last = i == filters - 1;
            const int64_t g = gate_of(i);
            const auto gate = parts[g < 0 ? 0 : g];
            const T* before = i > 0 ? m.values.get() + (i - 1) * m.points * W : nullptr;
            Ahead of_gradient, of_output, of_input;
            of_gradient.length = of_output.length = of_input.length = row.length;
            if (last) {
                of_gradient.add(dy);
                of_gradient.add(first.z);
                of_output.add(dy);
                of_output.add(grad, step);
            }
            if (g >= 0) {
                of_gradient.add(gate.z);
                of_input.add(gate.z);
                of_input.add(grad + g * W, step);
            }
            if (i == 0) {
                of_gradient.add(value.z);
                of_input.add(value.z);
                of_input.add(grad + order * W, step);
            }
            team.over(passes.p2(), [&](int64_t c0, int64_t c1, int part) {
                T* local = m.local.get() + part * passes.scratch() * S;
                // On the way in, the gradient of d: the sum over time of gradient times input.
                BlockedSum<T> skip;
                passes.columns_in(
                    buffer, c0, c1, local,
                    [&](int64_t t) HYENA_LAMBDA {
                        if (t >= row.length) return zero<T>();
                        const Vec<T> gradient = last ? dy[t] * first[t] : load(flow + t * W);
                        const Vec<T> v = i > 0 ? load(before + t * W) : value[t];
                        skip.add(gradient * (g >= 0 ? gate[t] * v : v));
                        return gradient;
                    },
                    of_gradient);
                store(m.skips.get() + part * W, skip.value());
            });
            add_skips(m.skips.get(), team.parts, static_cast<T*>(a.dd) + i * a.channels + group.first, group.lanes);
            T* spectrum_in = m.spectra.get() + i * passes.buffer() * S;
            SpectrumOf<T> dspectrum(a.dspectra, i, blocks, block, group);
            dspectrum.start(overwrite, a.seq.num_rows);
            backward_rows(products_of(i, block, group), spectrum_in, buffer, last, dspectrum, team);
            team.over(passes.p2(), [&](int64_t c0, int64_t c1, int part) {
                T* local = m.local.get() + part * passes.scratch() * S;
                // The gradient of this convolution's input, gate * value.
                passes.columns_out(
                    buffer, c0, c1, local,
                    [&](int64_t t, Cx<T> v) HYENA_LAMBDA {
                        if (t >= row.length) {
                            if (i > 0) store(flow + t * W, zero<T>());
                            return;
                        }
                        Vec<T> g_value = v.re;
                        if (g >= 0) {
                            store(grad + t * step + g * W, v.re * (i > 0 ? load(before + t * W) : value[t]));
                            g_value *= gate[t];
                        }
                        store(i > 0 ? flow + t * W : grad + t * step + order * W, g_value);
                    },
                    of_input);
                if (last)
                    passes.columns_out(
                        spectrum_in, c0, c1, local,
                        [&](int64_t t, Cx<T> v) HYENA_LAMBDA {
                            if (t < row.length) store(grad + t * step, v.re * dy[t]);
                        },
                        of_output);
            });
        }
        z.backward(row, group, m.taps.get(), grad, m.sums.get(), team, a.dweight, a.dbias);
    }

    // Step i of the recurrence: leaves the spectrum of its input, and (but for the last) the value after it.
    void forward_again(int64_t i, int64_t block, Group group, const Parts& parts, const BackwardMemory& m,
                       const Team& team) const {
        const int64_t g = gate_of(i);
        const auto gate = parts[g < 0 ? 0 : g], value = parts[a.order];
        T* input = m.spectra.get() + i * passes.buffer() * S;
        const T* before = i > 0 ? m.values.get() + (i - 1) * m.points * W : nullptr;
        Ahead in;
        in.length = gate.keep.length;
        if (g >= 0) in.add(gate.z);
        if (i == 0) in.add(value.z);
        team.over(passes.p2(), [&](int64_t c0, int64_t c1, int part) {
            T* local = m.local.get() + part * passes.scratch() * S;
            if (i > 0)
                passes.columns_in(
                    input, c0, c1, local, [&](int64_t t) HYENA_LAMBDA { return gate[t] * load(before + t * W); }, in);
            else if (g >= 0)
                passes.columns_in(input, c0, c1, local, [&](int64_t t) HYENA_LAMBDA { return gate[t] * value[t]; }, in);
            else
                passes.columns_in(input, c0, c1, local, [&](int64_t t) HYENA_LAMBDA { return value[t]; }, in);
        });
        if (i == a.spectra.filters - 1) return;  // its rows are transformed together with the gradient's
        T* after = m.values.get() + i * m.points * W;
        const Products<T> products = products_of(i, block, group);
        T* buffer = m.buffer.get();
        team.over(passes.p1(), [&](int64_t r0, int64_t r1, int) { products.convolve_apart(input, buffer, r0, r1); });
        team.over(passes.p2(), [&](int64_t c0, int64_t c1, int part) {
            T* local = m.local.get() + part * passes.scratch() * S;
            passes.columns_out(buffer, c0, c1, local,
                               [&](int64_t t, Cx<T> v) HYENA_LAMBDA { store(after + t * W, v.re); });
        });
    }
};

}  // namespace
}  // namespace hyena
