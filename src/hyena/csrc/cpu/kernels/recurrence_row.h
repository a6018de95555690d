// The gradient of a mixing step of one filter in rows of some thousand positions and more: hyena::recurrence of order
// 2, or of order 1 with a value filter. Two transforms' buffers are all that is kept of a row: gates and value are made
// of z again where they are needed, tile by tile at the end. recurrence_kept.h, which takes all others, keeps them.
#pragma once

#include "recurrence.h"

namespace hyena {
namespace {

// Positions whose gradients behind the short convolution are in the first cache level at once.
constexpr int64_t kGradientTile = 128;

template <class T, class IO>
struct RecurrenceRow {
    static constexpr int W = Simd<T>::W, S = 2 * W;
    const Recurrence<T, IO>& of;
    const RecurrenceArgs& a;
    const Passes<T>& passes;
    const int64_t parts_of_z, gate;
    const int64_t reach;  // of the short convolution: that many gradients of later positions are in one of dz
    using Parts = typename Recurrence<T, IO>::Parts;

    explicit RecurrenceRow(const Recurrence<T, IO>& recurrence)
        : of(recurrence),
          a(of.a),
          passes(of.passes),
          parts_of_z(a.order + 1),
          gate(of.gate_of(0)),
          reach(a.short_filter.taps - 1) {}

    struct WorkMemory {
        // In the real parts of points: gate times value, then what the filter makes of it; and the gradient of that,
        // then of gate times value.
        Memory<T> input, gradient;
        const int64_t tile;  // numbers of a worker's tile of N + 1 interleaved gradients
        Memory<T> tiles, local, taps, sums, skips;
        WorkMemory(const RecurrenceRow& r, int parts)
            : input(r.passes.buffer() * S),
              gradient(r.passes.buffer() * S),
              tile((kGradientTile + r.reach) * r.parts_of_z * W),
              tiles(tile * parts),
              local(r.passes.scratch() * S * parts),
              taps(r.of.z.size()),
              sums(r.of.z.sums() * parts),
              skips(W * parts) {}
    };

    void backward() const {
        share_blocks(
            a.seq, of.blocks, true, a.dspectra, [&](int parts) { return WorkMemory(*this, parts); },
            [&](const Row& row, int64_t block, Group group, const WorkMemory& memory, const Team& team,
                bool overwrite) { backward_task(row, block, group, memory, team, overwrite); });
    }

    void backward_task(const Row& row, int64_t block, Group group, const WorkMemory& m, const Team& team,
                       bool overwrite) const {
        of.z.lay_out(group, m.taps.get());
        const Parts parts{of.z, row, group, m.taps.get()};
        const bool is_usual = parts[0].is_usual();
        SpectrumOf<T> dspectrum(a.dspectra, 0, of.blocks, block, group);
        dspectrum.start(overwrite, a.seq.num_rows);
        is_usual ? look_at<true>(row, parts, group, m, team) : look_at<false>(row, parts, group, m, team);
        add_skips(m.skips.get(), team.parts, static_cast<T*>(a.dd) + group.first, group.lanes);
        T *input = m.input.get(), *gradient = m.gradient.get(), *local = m.local.get();
        of.columns.in(input, row.length, local, team);
        of.columns.in(gradient, row.length, local, team);
        backward_rows(of.products_of(0, block, group), input, gradient, true, dspectrum, team);
        of.columns.out(input, Tail<T>{}, local, team);
        of.columns.out(gradient, Tail<T>{}, local, team);
        is_usual ? finish<true>(row, parts, group, m, team) : finish<false>(row, parts, group, m, team);
    }

    // Goes through z and dy once, in order: what is transformed, and the gradient of d, the sum of the two's product.
    template <bool kUsual>
    void look_at(const Row& row, const Parts& parts, Group group, const WorkMemory& m, const Team& team) const {
        const auto first = parts[0], x = parts[gate < 0 ? 0 : gate], value = parts[a.order];
        const Channels<T, IO> dy(a.dy, row, group);
        const Runs<T> input = of.columns.at_points(m.input.get()), gradient = of.columns.at_points(m.gradient.get());
        Ahead ahead;
        ahead.length = row.length;
        ahead.add(first.z);
        ahead.add(value.z);
        ahead.add(dy);
        if (gate >= 0) ahead.add(x.z);
        team.over(row.length, [&](int64_t begin, int64_t end, int part) {
            BlockedSum<T> skip;
            input.over(begin, end, [&](int64_t t, T* at) HYENA_LAMBDA {
                T* of_gradient = gradient.data + (at - input.data);
                ahead(t + kReadAhead);
                ask_for<W>(at + kReadAhead * S);
                ask_for<W>(of_gradient + kReadAhead * S);
                Vec<T> v = value.template at<kUsual>(t);
                if (gate >= 0) v *= x.template at<kUsual>(t);
                // y is zero where nothing is kept, whatever its gradient is there.
                const Vec<T> g = first.keep[t] ? first.template at<kUsual>(t) * dy[t] : zero<T>();
                store(at, v);
                store(of_gradient, g);
                skip.add(g * v);
            });
            store(m.skips.get() + part * W, skip.value());
        });
    }

    // Gradients behind the short convolution, a tile of them and what it takes of the next one, and from there dz.
    template <bool kUsual>
    void finish(const Row& row, const Parts& parts, Group group, const WorkMemory& m, const Team& team) const {
        const auto first = parts[0], x = parts[gate < 0 ? 0 : gate], value = parts[a.order];
        const Channels<T, IO> dy(a.dy, row, group);
        const Runs<T> output = of.columns.at_points(m.input.get()), gradient = of.columns.at_points(m.gradient.get());
        const int64_t step = parts_of_z * W;
        of.z.start(m.sums.get(), team.parts);
        Ahead ahead;
        ahead.length = row.length;
        ahead.add(value.z);
        ahead.add(dy);
        if (gate >= 0) ahead.add(x.z);
        each_tile(row.length, kGradientTile, team, [&](int64_t t0, int64_t count, int part) {
            T* grads = m.tiles.get() + part * m.tile;
            const int64_t left = row.length - t0, all = count + reach < left ? count + reach : left;
            gradient.over(t0, t0 + all, [&](int64_t t, const T* at) HYENA_LAMBDA {
                const T* of_output = output.data + (at - gradient.data);
                ahead(t + kReadAhead);
                ask_for<W>(at + kReadAhead * S);
                ask_for<W>(of_output + kReadAhead * S);
                T* to = grads + (t - t0) * step;
                if (!first.keep[t]) {
                    for (int64_t p = 0; p < parts_of_z; ++p) store(to + p * W, zero<T>());
                    return;
                }
                const Vec<T> g = load(at);
                store(to, load(of_output) * dy[t]);
                if (gate >= 0) store(to + gate * W, g * value.template at<kUsual>(t));
                store(to + a.order * W, gate >= 0 ? g * x.template at<kUsual>(t) : g);
            });
            of.z.backward_span(
                row, group, m.taps.get(),
                [&](int64_t p) { return Runs<T>{grads + p * W - t0 * step, step, int64_t(1) << 62, 0}; },
                m.sums.get() + part * of.z.sums(), t0, t0 + count);
        });
        of.z.add(m.sums.get(), team.parts, group, a.dweight, a.dbias);
    }
};

}  // namespace
}  // namespace hyena
