// The whole mixing step from z to y: hyena::recurrence, and what its gradients (recurrence_gradient.h) share with it.
//
// One task is a row and a group of W channels (forward), or a block of filters and all rows that use them (gradients,
// so that every sum over the batch has one writer and one order). A task's data stays in its thread's cache from the
// load of z to the store of y.
#pragma once

#include "columns.h"
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
    const Columns<T> columns;
    const Blocks<T> blocks;
    const int64_t sections;  // of the longest row
    const ShortParts<T, IO> z;
    const bool value_filter;
    using Parts = typename ShortParts<T, IO>::InRow;

    explicit Recurrence(const RecurrenceArgs& args)
        : a(args),
          plan(args.spectra.points),
          passes{*plan},
          columns{passes},
          blocks{args.channels, args.spectra.channels},
          sections(most_sections(args.seq, args.spectra.points)),
          z{args.seq, args.z, args.dz, args.short_filter, args.channels, args.order + 1},
          value_filter(args.spectra.filters == args.order) {}

    // The gate that step i of the recurrence multiplies by, or -1 for the value filter.
    int64_t gate_of(int64_t i) const {
        const int64_t step = value_filter ? i - 1 : i;
        return step < 0 ? -1 : a.order - 1 - step;
    }

    // The other way round.
    int64_t step_of(int64_t gate) const { return a.order - 1 - gate + (value_filter ? 1 : 0); }

    // Numbers of so many tails, and one of them.
    int64_t tails(int64_t count) const { return sections > 1 ? count * passes.plan.size * W : 0; }
    Tail<T> tail_of(int64_t i, const Memory<T>& memory) const {
        return {sections > 1 ? memory.get() + i * passes.plan.size * W : nullptr};
    }

    Products<T> products_of(int64_t i, int64_t block, Group group) const {
        return {passes, SpectrumOf<T>(a.spectra, i, blocks, block, group),
                skip_of<T>(a.d, i * a.channels, group, passes.plan.size)};
    }

    struct ForwardMemory {
        Memory<T> buffer, local, taps, tail;
        ForwardMemory(const Recurrence& m, int parts)
            : buffer(m.passes.buffer() * S),
              local(m.passes.scratch() * S * parts),
              taps(m.z.size()),
              tail(m.tails(m.a.spectra.filters)) {}
    };

    void forward() const {
        // Neighbouring tasks share a row, whose channels are neighbours in memory, as long as all spectra stay in a
        // cache anyway; otherwise they share a group's spectrum.
        const bool by_row = a.spectra.channels * a.spectra.points * int64_t(2 * sizeof(T)) <= kSpectraInCache;
        share_rows(
            a.seq, blocks, sections == 1, by_row, [&](int parts) { return ForwardMemory(*this, parts); },
            [&](const Row& row, int64_t block, Group group, const ForwardMemory& memory, const Team& team) {
                forward_task(row, block, group, memory, team);
            });
    }

    void forward_task(const Row& row, int64_t block, Group group, const ForwardMemory& memory, const Team& team) const {
        z.lay_out(group, memory.taps.get());
        const Parts parts{z, row, group, memory.taps.get()};
        const Channels<T, IO> y(a.y, row, group);
        const int64_t filters = a.spectra.filters;
        // A long result is out of the caches again before anybody reads it: written past them, it need not be fetched
        // first, and leaves the transform's buffer where it is.
        const bool past_caches = a.seq.num_rows * row.length * a.channels * int64_t(sizeof(IO)) > kResultInCache;
        if (filters == 0) {
            const auto first = parts[0], value = parts[a.order];
            team.over(row.length, [&](int64_t t0, int64_t t1, int) {
                for (int64_t t = t0; t < t1; ++t) y.put(t, first[t] * value[t]);
            });
            return;
        }
        for (int64_t i = 0; i < filters; ++i) tail_of(i, memory.tail).start(passes.plan.size);
        for (int64_t t0 = 0; t0 < row.length; t0 += passes.plan.size)
            if (parts[0].is_usual())
                forward_section<true>(t0, row, parts, y, block, group, memory, team, past_caches);
            else
                forward_section<false>(t0, row, parts, y, block, group, memory, team, past_caches);
    }

    // All steps of the section that begins at position t0. Where a transform has columns, gates are applied in passes
    // of their own, in order: see RecurrenceKept::look_at.
    template <bool kUsual>
    void forward_section(int64_t t0, const Row& row, const Parts& parts, const Channels<T, IO>& y, int64_t block,
                         Group group, const ForwardMemory& memory, const Team& team, bool past_caches) const {
        T* buffer = memory.buffer.get();
        const bool has_columns = passes.p1() > 1;
        const Runs<T> flow = columns.at_points(buffer);
        const auto first = parts[0], value = parts[a.order];
        const int64_t left = row.length - t0, length = left < passes.plan.size ? left : passes.plan.size;
        Ahead out;
        out.add(first.z, t0, length);
        if (!past_caches) out.add(y, t0, length);
        const auto put = [&](int64_t t, Vec<T> v) HYENA_LAMBDA {
            y.put(t0 + t, first.template at<kUsual>(t0 + t) * v, past_caches);
        };
        for (int64_t i = 0; i < a.spectra.filters; ++i) {
            const int64_t g = gate_of(i);
            const auto gate = parts[g < 0 ? 0 : g];
            Ahead in;
            if (g >= 0) in.add(gate.z, t0, length);
            if (i == 0) in.add(value.z, t0, length);
            const auto input = [&](int64_t t, const T* at) HYENA_LAMBDA {
                const Vec<T> v = i == 0 ? value.template at<kUsual>(t0 + t) : load(at);
                return g >= 0 ? gate.template at<kUsual>(t0 + t) * v : v;
            };
            if (has_columns) {
                team.over(length, [&](int64_t begin, int64_t end, int) {
                    flow.over(begin, end, [&](int64_t t, T* at) HYENA_LAMBDA {
                        in(t + kReadAhead);
                        ask_for<W>(at + kReadAhead * S);
                        store(at, input(t, at));
                    });
                });
                columns.in(buffer, length, memory.local.get(), team);
            } else {
                team.over(passes.p2(), [&](int64_t begin, int64_t end, int) {
                    passes.row_in(
                        buffer, begin, end,
                        [&](Point p) HYENA_LAMBDA { return p.t < length ? input(p.t, buffer + p.at) : zero<T>(); }, in);
                });
            }
            const Products<T> products = products_of(i, block, group);
            team.over(passes.p1(), [&](int64_t r0, int64_t r1, int) { products.convolve(buffer, r0, r1); });
            const Tail<T> tail = tail_of(i, memory.tail);
            if (has_columns || i + 1 < a.spectra.filters) {
                columns.out(buffer, tail, memory.local.get(), team);
                continue;
            }
            team.over(passes.p2(), [&](int64_t begin, int64_t end, int) {
                passes.row_out(
                    buffer, begin, end,
                    [&](Point p, Cx<T> v) HYENA_LAMBDA {
                        const Vec<T> x = tail.joined(p.t, v);
                        if (p.t < length) put(p.t, x);
                    },
                    out);
            });
        }
        if (has_columns)
            team.over(length, [&](int64_t begin, int64_t end, int) {
                flow.over(begin, end, [&](int64_t t, const T* at) HYENA_LAMBDA {
                    out(t + kReadAhead);
                    ask_for<W>(at + kReadAhead * S);
                    put(t, load(at));
                });
            });
    }
};

}  // namespace
}  // namespace hyena
