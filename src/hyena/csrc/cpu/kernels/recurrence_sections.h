// The gradient of a mixing step of one filter, rows in sections: hyena::recurrence of order 2, or of order 1 with a
// value filter. A section's data stays in the caches from the loads of z and dy to the store of dz; recurrence_kept.h,
// which has more filters, keeps whole rows.
#pragma once

#include "recurrence.h"

namespace hyena {
namespace {

template <class T, class IO>
struct RecurrenceSections {
    static constexpr int W = Simd<T>::W, S = 2 * W;
    const Recurrence<T, IO>& of;
    const RecurrenceArgs& a;
    const Passes<T>& passes;
    const int64_t points, parts_of_z, gate;
    const int64_t reach;  // of the short convolution: that many gradients of later positions are in one of dz

    explicit RecurrenceSections(const Recurrence<T, IO>& recurrence)
        : of(recurrence),
          a(of.a),
          passes(of.passes),
          points(passes.plan.size),
          parts_of_z(a.order + 1),
          gate(of.gate_of(0)),
          reach(a.short_filter.taps - 1) {}

    // Of a section, if nothing else is said; N + 1 arrays are of the parts of z.
    struct WorkMemory {
        Memory<T> input, buffer;  // the convolution's input, and the gradient of its output
        Memory<T> flow, of_y;     // that gradient, and dy, of this section and the next one
        Memory<T> seen;           // gate and value
        Memory<T> grads;          // N + 1 gradients behind the short convolution, with `reach` positions before
        Memory<T> local, taps, sums, skips, tail;
        explicit WorkMemory(const RecurrenceSections& s)
            : input(s.passes.buffer() * S),
              buffer(s.passes.buffer() * S),
              flow(2 * s.points * W),
              of_y(2 * s.points * W),
              seen(2 * s.points * W),
              grads(s.parts_of_z * (s.reach + s.points) * W),
              local(s.passes.scratch() * S),
              taps(s.of.z.size()),
              sums(s.of.z.sums()),
              skips(W),
              tail(s.points * W) {}
    };

    void backward() const {
        share_blocks(
            a.seq, of.blocks, false, a.dspectra, [&](int) { return WorkMemory(*this); },
            [&](const Row& row, int64_t block, Group group, const WorkMemory& memory, const Team& team,
                bool overwrite) { backward_task(row, block, group, memory, team, overwrite); });
    }

    void backward_task(const Row& row, int64_t block, Group group, const WorkMemory& m, const Team& team,
                       bool overwrite) const {
        of.z.lay_out(group, m.taps.get());
        const typename Recurrence<T, IO>::Parts parts{of.z, row, group, m.taps.get()};
        const Products<T> products = of.products_of(0, block, group);
        SpectrumOf<T> dspectrum(a.dspectra, 0, of.blocks, block, group);
        Tail<T>{m.tail.get()}.start(points);
        of.z.start(m.sums.get(), 1);
        look_at_gradient(0, row, parts, group, m);
        int64_t done = 0;  // positions that have their dz
        for (int64_t t0 = 0; t0 < row.length; t0 += points) {
            dspectrum.start(overwrite && t0 == 0, a.seq.num_rows * of.sections);
            look_at_gradient(t0 + points, row, parts, group, m);
            look_at(t0, row, parts, m);
            convolve(t0, row, products, dspectrum, m, team);
            add_skips(m.skips.get(), 1, static_cast<T*>(a.dd) + group.first, group.lanes);
            set_aside_masked(t0, row, parts[0].keep, m);
            const int64_t end = row.length - t0 <= points ? row.length : t0 + points - reach;
            if (end > done) {
                of.z.backward_span(
                    row, group, m.taps.get(), [&](int64_t part) { return grads_of(part, t0, m); }, m.sums.get(), done,
                    end);
                done = end;
            }
            keep_last(m);
        }
        of.z.add(m.sums.get(), 1, group, a.dweight, a.dbias);
    }

    // The half of an array of two sections that has the one with position t.
    T* half(const Memory<T>& both, int64_t t) const { return both.get() + t / points % 2 * points * W; }

    // Gradients of a part of z, by position in the row, in the section that begins at t0.
    Runs<T> grads_of(int64_t part, int64_t t0, const WorkMemory& m) const {
        return {m.grads.get() + (part * (reach + points) + reach - t0) * W, W, int64_t(1) << 62, 0};
    }

    int64_t length_at(int64_t t0, const Row& row) const {
        return row.length - t0 < points ? row.length - t0 : points;
    }

    // dy where it counts, and times the first gate the gradient of the convolution's output, from position t0 on.
    void look_at_gradient(int64_t t0, const Row& row, const typename Recurrence<T, IO>::Parts& parts, Group group,
                          const WorkMemory& m) const {
        const auto first = parts[0];
        const Channels<T, IO> dy(a.dy, row, group);
        Ahead ahead;
        ahead.length = row.length;
        ahead.add(first.z);
        ahead.add(dy);
        T *flow = half(m.flow, t0), *of_y = half(m.of_y, t0);
        for (int64_t t = 0, length = length_at(t0, row); t < length; ++t) {
            ahead(t0 + t + kReadAhead);
            // y is zero where nothing is kept, whatever its gradient is there.
            const Vec<T> g = first.keep[t0 + t] ? dy[t0 + t] : zero<T>();
            store(of_y + t * W, g);
            store(flow + t * W, first[t0 + t] * g);
        }
    }

    // Gate and value, and their product where it is transformed.
    void look_at(int64_t t0, const Row& row, const typename Recurrence<T, IO>::Parts& parts,
                 const WorkMemory& m) const {
        const auto x = parts[gate < 0 ? 0 : gate], value = parts[a.order];
        const Runs<T> product = of.columns.at_points(m.input.get());
        Ahead ahead;
        ahead.length = row.length;
        ahead.add(value.z);
        if (gate >= 0) ahead.add(x.z);
        for (int64_t t = 0, length = length_at(t0, row); t < length; ++t) {
            ahead(t0 + t + kReadAhead);
            T* seen = m.seen.get() + t * S;
            const Vec<T> v = value[t0 + t];
            store(seen + W, v);
            if (gate >= 0) {
                const Vec<T> g = x[t0 + t];
                store(seen, g);
                store(product(t), g * v);
            } else {
                store(product(t), v);
            }
        }
    }

    // Gradients behind the short convolution, of the filter's spectrum, and the sum for that of d.
    void convolve(int64_t t0, const Row& row, const Products<T>& products, const SpectrumOf<T>& dspectrum,
                  const WorkMemory& m, const Team& team) const {
        const int64_t left = row.length - t0, length = length_at(t0, row);
        T *input = m.input.get(), *buffer = m.buffer.get(), *local = m.local.get();
        const T *flow = half(m.flow, t0), *next = half(m.flow, t0 + points), *of_y = half(m.of_y, t0);
        const T* seen = m.seen.get();
        BlockedSum<T> skip;
        passes.columns_in(buffer, 0, passes.p2(), local, [&](int64_t t) HYENA_LAMBDA {
            Cx<T> g{};
            if (t < length) {
                g.re = load(flow + t * W);
                const Vec<T> v = load(seen + t * S + W);
                skip.add(g.re * (gate >= 0 ? load(seen + t * S) * v : v));
            }
            if (t + points < left) g.im = load(next + t * W);
            return g;
        });
        store(m.skips.get(), skip.value());
        passes.columns_in(input, 0, passes.p2(), local, [&](Point p) HYENA_LAMBDA {
            return p.t < length ? load(input + p.at) : zero<T>();
        });
        backward_rows(products, input, buffer, true, dspectrum, team);
        const Tail<T> tail{m.tail.get()};
        const Runs<T> of_first = grads_of(0, t0, m), of_gate = grads_of(gate < 0 ? 0 : gate, t0, m),
                      of_value = grads_of(a.order, t0, m);
        passes.columns_out(input, 0, passes.p2(), local, [&](int64_t t, Cx<T> v) HYENA_LAMBDA {
            const Vec<T> x = tail.joined(t, v);
            if (t < length) store(of_first(t0 + t), x * load(of_y + t * W));
        });
        passes.columns_out(buffer, 0, passes.p2(), local, [&](int64_t t, Cx<T> v) HYENA_LAMBDA {
            if (t >= length) return;
            if (gate >= 0) store(of_gate(t0 + t), v.re * load(seen + t * S + W));
            store(of_value(t0 + t), gate >= 0 ? v.re * load(seen + t * S) : v.re);
        });
    }

    void set_aside_masked(int64_t t0, const Row& row, const Keep& keep, const WorkMemory& m) const {
        if (!keep.mask) return;
        for (int64_t part = 0; part < parts_of_z; ++part) {
            const Runs<T> grad = grads_of(part, t0, m);
            for (int64_t t = t0, end = t0 + length_at(t0, row); t < end; ++t)
                if (!keep[t]) store(grad(t), zero<T>());
        }
    }

    // The next section's dz need the last gradients of this one.
    void keep_last(const WorkMemory& m) const {
        for (int64_t part = 0; part < parts_of_z; ++part) {
            T* grads = m.grads.get() + part * (reach + points) * W;
            std::memmove(grads, grads + points * W, size_t(reach) * W * sizeof(T));
        }
    }
};

}  // namespace
}  // namespace hyena
