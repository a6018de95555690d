// The gradient of any recurrence, with what the short convolution gives kept for the whole row: hyena::recurrence of
// several filters or none, and of one filter where all that stays in the caches.
#pragma once

#include "recurrence.h"

namespace hyena {
namespace {

// Positions of one part of z that the backward pass goes through before it turns to the next part.
constexpr int64_t kLookAt = 64;

template <class T, class IO>
struct RecurrenceKept {
    static constexpr int W = Simd<T>::W, S = 2 * W;
    const Recurrence<T, IO>& of;
    const RecurrenceArgs& a;
    const Passes<T>& passes;
    using Parts = typename Recurrence<T, IO>::Parts;

    explicit RecurrenceKept(const Recurrence<T, IO>& recurrence) : of(recurrence), a(of.a), passes(of.passes) {}

    // The gradients of what the short convolution gave take the places of points that were used last: of the first
    // gate in the real parts of the last convolution's output, of step i's gate in the imaginary parts of its input's
    // spectrum (step 0: in the real parts of the gradient of its input), of the value, and of what flows from step to
    // step, in the imaginary parts of that gradient. Buffers have all sections of a row.
    struct BackwardMemory {
        const int64_t positions, filters, parts_of_z;
        Memory<T> seen;     // N + 1 interleaved arrays: see look_at
        Memory<T> spectra;  // F buffers: the transform of each convolution's input
        Memory<T> buffer;   // transforms of gradients
        Memory<T> values;   // F - 1 arrays: the value after each convolution but the last
        Memory<T> local, taps, sums, skips, tail;
        BackwardMemory(const RecurrenceKept& m, int parts)
            : positions(m.of.sections * m.passes.plan.size),
              filters(m.a.spectra.filters),
              parts_of_z(m.a.order + 1),
              seen(filters > 0 ? parts_of_z * positions * W : 0),
              spectra(filters * m.room()),
              buffer(m.room()),
              values(filters > 1 ? (filters - 1) * positions * W : 0),
              local(m.passes.scratch() * S * parts),
              taps(m.of.z.size()),
              sums(m.of.z.sums() * parts),
              skips(W * parts),
              tail(m.of.tails(1)) {}
    };

    int64_t room() const { return of.sections * passes.buffer() * S; }

    // Calls f(first position, where in a buffer) for each section of a row.
    template <class F>
    void each_section(const Row& row, F&& f) const {
        int64_t at = 0;
        for (int64_t t0 = 0; t0 < row.length; t0 += passes.plan.size, at += passes.buffer() * S) f(t0, at);
    }

    void backward() const {
        share_blocks(
            a.seq, of.blocks, of.sections == 1, a.dspectra, [&](int parts) { return BackwardMemory(*this, parts); },
            [&](const Row& row, int64_t block, Group group, const BackwardMemory& memory, const Team& team,
                bool overwrite) { backward_task(row, block, group, memory, team, overwrite); });
    }

    void backward_task(const Row& row, int64_t block, Group group, const BackwardMemory& m, const Team& team,
                       bool overwrite) const {
        of.z.lay_out(group, m.taps.get());
        const Parts parts{of.z, row, group, m.taps.get()};
        const Channels<T, IO> dy(a.dy, row, group);
        const int64_t filters = a.spectra.filters;
        const auto first = parts[0], value = parts[a.order];
        const auto grad_of = [&](int64_t part) { return gradient_of(part, m); };
        if (filters == 0)
            team.over(row.length, [&](int64_t t0, int64_t t1, int) {
                const Runs<T> of_first = grad_of(0), of_value = grad_of(a.order);
                for (int64_t t = t0; t < t1; ++t) {
                    const Vec<T> g = dy[t];
                    store(of_first(t), g * value[t]);
                    store(of_value(t), g * first[t]);
                }
            });
        else
            look_at(row, parts, m, team);
        for (int64_t i = 0; i < filters; ++i) forward_again(i, row, block, group, m, team);
        if (filters > 0) look_at_gradient(row, first, dy, m, team);
        for (int64_t i = filters - 1; i >= 0; --i) {
            SpectrumOf<T> dspectrum(a.dspectra, i, of.blocks, block, group);
            const Products<T> products = of.products_of(i, block, group);
            of.tail_of(0, m.tail).start(passes.plan.size);
            each_section(row, [&](int64_t t0, int64_t at) {
                dspectrum.start(overwrite && t0 == 0, a.seq.num_rows * of.sections);
                backward_section(i, t0, row.length - t0, at, products, dspectrum, m, team);
                add_skips(m.skips.get(), team.parts, static_cast<T*>(a.dd) + i * a.channels + group.first,
                          group.lanes);
            });
        }
        of.z.backward(row, group, m.taps.get(), grad_of, m.sums.get(), team, a.dweight, a.dbias);
    }

    // The gradients of convolution i in the section that begins at position t0, `left` positions before the row's end.
    void backward_section(int64_t i, int64_t t0, int64_t left, int64_t at, const Products<T>& products,
                          const SpectrumOf<T>& dspectrum, const BackwardMemory& m, const Team& team) const {
        const bool last = i == a.spectra.filters - 1;
        const int64_t g = of.gate_of(i), points = passes.plan.size, next = passes.buffer() * S;
        const Input input = input_of(i, m).from(t0);
        T *gradient = m.buffer.get() + at, *spectrum_in = m.spectra.get() + i * room() + at;
        team.over(passes.p2(), [&](int64_t c0, int64_t c1, int part) {
            T* local = m.local.get() + part * passes.scratch() * S;
            // On the way in, the gradient of d: the sum over time of gradient times input.
            BlockedSum<T> skip;
            const auto own = [&](Point p) HYENA_LAMBDA {
                if (p.t >= left) return zero<T>();
                const Vec<T> g = load(gradient + p.at + W);
                skip.add(g * input[p.t]);
                return g;
            };
            if (left <= points)
                passes.columns_in(gradient, c0, c1, local, own);
            else
                passes.columns_in(gradient, c0, c1, local, [&](Point p) HYENA_LAMBDA {
                    return Cx<T>{own(p), p.t + points < left ? load(gradient + next + p.at + W) : zero<T>()};
                });
            store(m.skips.get() + part * W, skip.value());
        });
        backward_rows(products, spectrum_in, gradient, last, dspectrum, team);
        const Tail<T> tail = of.tail_of(0, m.tail);
        const T* of_y = m.seen.get() + t0 * input.step;
        team.over(passes.p2(), [&](int64_t c0, int64_t c1, int part) {
            T* local = m.local.get() + part * passes.scratch() * S;
            if (last)
                passes.columns_out(spectrum_in, c0, c1, local, [&](Point p, Cx<T> v) HYENA_LAMBDA {
                    const Vec<T> x = tail.joined(p.t, v);
                    if (p.t < left) store(spectrum_in + p.at, x * load(of_y + p.t * input.step));
                });
            // The gradient of this convolution's input, gate * value.
            T* of_gate = i > 0 ? spectrum_in + W : gradient;
            passes.columns_out(gradient, c0, c1, local, [&](Point p, Cx<T> v) HYENA_LAMBDA {
                if (p.t >= left) return;
                if (g >= 0) store(of_gate + p.at, v.re * input.value(p.t));
                store(gradient + p.at + W, g >= 0 ? v.re * input.gate(p.t) : v.re);
            });
        });
    }

    // Where the gradient of a part of z behind the short convolution is, see BackwardMemory.
    Runs<T> gradient_of(int64_t part, const BackwardMemory& m) const {
        const int64_t each = room();
        T *buffer = m.buffer.get(), *spectra = m.spectra.get(), *place = buffer;
        if (part == a.order)
            place = buffer + W;
        else if (part == 0)
            place = m.filters > 0 ? spectra + (m.filters - 1) * each : buffer;
        else if (const int64_t i = of.step_of(part); i > 0)
            place = spectra + i * each + W;
        return of.columns.at_points(place);
    }

    // Goes through a row once, in order, and keeps what the short convolution gives for all but the first gate. (A
    // position's channels lie in a page of their own in z, and a transform's columns go through all of them.)
    void look_at(const Row& row, const Parts& parts, const BackwardMemory& m, const Team& team) const {
        const int64_t count = m.parts_of_z, step = count * W;
        team.over(row.length, [&](int64_t begin, int64_t end, int) {
            for (int64_t t0 = begin; t0 < end; t0 += kLookAt) {
                const int64_t t1 = t0 + kLookAt < end ? t0 + kLookAt : end;
                for (int64_t p = 1; p < count; ++p) {
                    const auto x = parts[p];
                    Ahead ahead;
                    ahead.length = row.length;
                    ahead.add(x.z);
                    T* to = m.seen.get() + p * W;
                    for (int64_t t = t0; t < t1; ++t) {
                        ahead(t + kReadAhead);
                        ask_for<W>(to + (t + kReadAhead) * step);
                        store(to + t * step, x[t]);
                    }
                }
            }
        });
    }

    // Keeps dy in the first gate's place, and puts their product, the gradient of the last convolution's output, where
    // it is transformed.
    void look_at_gradient(const Row& row, const Convolved<T, IO>& first, const Channels<T, IO>& dy,
                          const BackwardMemory& m, const Team& team) const {
        const int64_t step = m.parts_of_z * W;
        const Runs<T> flow = gradient_of(a.order, m);
        Ahead ahead;
        ahead.length = row.length;
        ahead.add(first.z);
        ahead.add(dy);
        team.over(row.length, [&](int64_t begin, int64_t end, int) {
            flow.over(begin, end, [&](int64_t t, T* at) HYENA_LAMBDA {
                ahead(t + kReadAhead);
                ask_for<W>(at + kReadAhead * S);
                ask_for<W>(m.seen.get() + (t + kReadAhead) * step);
                // y is zero where nothing is kept, whatever its gradient is there.
                const Vec<T> g = first.keep[t] ? dy[t] : zero<T>();
                store(m.seen.get() + t * step, g);
                store(at, first[t] * g);
            });
        });
    }

    // What convolution i is applied to, gate times value (or the value alone), at positions of the row.
    struct Input {
        const T *gates, *values;
        int64_t step, value_step;
        HYENA_INLINE Vec<T> gate(int64_t t) const { return load(gates + t * step); }
        HYENA_INLINE Vec<T> value(int64_t t) const { return load(values + t * value_step); }
        HYENA_INLINE Vec<T> operator[](int64_t t) const { return gates ? gate(t) * value(t) : value(t); }
        Input from(int64_t t) const {
            return {gates ? gates + t * step : nullptr, values + t * value_step, step, value_step};
        }
    };
    Input input_of(int64_t i, const BackwardMemory& m) const {
        const int64_t g = of.gate_of(i), step = m.parts_of_z * W;
        const T* seen = m.seen.get();
        const T* gates = g < 0 ? nullptr : seen + g * W;
        if (i == 0) return {gates, seen + a.order * W, step, step};
        return {gates, m.values.get() + (i - 1) * m.positions * W, step, W};
    }

    // Step i of the recurrence: leaves the spectrum of its input, and (but for the last) the value after it.
    void forward_again(int64_t i, const Row& row, int64_t block, Group group, const BackwardMemory& m,
                       const Team& team) const {
        const Products<T> products = of.products_of(i, block, group);
        const Tail<T> tail = of.tail_of(0, m.tail);
        tail.start(passes.plan.size);
        T* buffer = m.buffer.get();
        each_section(row, [&](int64_t t0, int64_t at) {
            const Input from = input_of(i, m).from(t0);
            const int64_t length = row.length - t0;
            T* input = m.spectra.get() + i * room() + at;
            team.over(passes.p2(), [&](int64_t c0, int64_t c1, int part) {
                T* local = m.local.get() + part * passes.scratch() * S;
                passes.columns_in(input, c0, c1, local,
                                  [&](int64_t t) HYENA_LAMBDA { return t < length ? from[t] : zero<T>(); });
            });
            if (i == a.spectra.filters - 1) return;  // its rows are transformed together with the gradient's
            T* after = m.values.get() + (i * m.positions + t0) * W;
            team.over(passes.p1(),
                      [&](int64_t r0, int64_t r1, int) { products.convolve_apart(input, buffer, r0, r1); });
            team.over(passes.p2(), [&](int64_t c0, int64_t c1, int part) {
                T* local = m.local.get() + part * passes.scratch() * S;
                passes.columns_out(buffer, c0, c1, local,
                                   [&](int64_t t, Cx<T> v) HYENA_LAMBDA { store(after + t * W, tail.joined(t, v)); });
            });
        });
    }
};

}  // namespace
}  // namespace hyena
