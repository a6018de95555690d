// Gates and value: the N + 1 parts of z behind their short convolution, and its gradient.
#pragma once

#include "short_conv.h"

namespace hyena {
namespace {

// Of z (R, L, (N + 1) C); `count` is N + 1.
template <class T, class IO>
struct ShortParts {
    static constexpr int W = Simd<T>::W;
    const Sequence& seq;
    const Array &z, &dz;
    const ShortFilter& filter;
    int64_t channels, count;

    // Numbers that `lay_out` writes, and that `backward` adds its sums to.
    int64_t size() const { return count * (filter.taps + 1) * W; }
    int64_t sums() const { return count * sums_size(filter.taps, W); }

    Group of(int64_t part, Group group) const { return {part * channels + group.first, group.lanes}; }

    void lay_out(Group group, T* to) const {
        for (int64_t part = 0; part < count; ++part)
            hyena::lay_out(filter, of(part, group), to + part * (filter.taps + 1) * W);
    }

    // As one group of channels sees them in one row.
    struct InRow {
        const ShortParts& all;
        const Row& row;
        Group group;
        const T* taps;
        Convolved<T, IO> operator[](int64_t part) const {
            return {Channels<T, IO>(all.z, row, all.of(part, group)), Keep(all.seq, row),
                    taps + part * (all.filter.taps + 1) * W, all.filter.taps};
        }
    };

    // dz of a row from the gradient behind the short convolution, `grad_of(part)` as Runs, which is set to zero where
    // nothing is kept. Adds to (N + 1) C gradients of the filter, as their only writer; `to` is a worker's memory for
    // sums.
    template <class GradOf>
    void backward(const Row& row, Group group, const T* taps, GradOf&& grad_of, T* to, const Team& team, void* dweight,
                  void* dbias) const {
        const Keep keep(seq, row);
        start(to, team.parts);
        if (keep.mask)
            for (int64_t p = 0; p < count; ++p) {
                const Runs<T> grad = grad_of(p);
                for (int64_t t = 0; t < row.length; ++t)
                    if (!keep[t]) store(grad(t), zero<T>());
            }
        team.over(row.length, [&](int64_t t0, int64_t t1, int part) {
            backward_span(row, group, taps, grad_of, to + part * sums(), t0, t1);
        });
        add(to, team.parts, group, dweight, dbias);
    }

    // The same in steps: sums of so many workers begin; positions [begin, end), whose gradients and those of the next
    // taps - 1 positions are there, zero where nothing is kept; and what all workers' sums come to.
    void start(T* to, int workers) const { std::memset(to, 0, sums() * workers * sizeof(T)); }

    template <class GradOf>
    void backward_span(const Row& row, Group group, const T* taps, GradOf&& grad_of, T* to, int64_t begin,
                       int64_t end) const {
        const bool past_caches = seq.num_rows * row.length * channels * count * int64_t(sizeof(IO)) > kResultInCache;
        for (int64_t p = 0; p < count; ++p)
            short_conv_backward_span<T, IO>(Channels<T, IO>(z, row, of(p, group)),
                                            Channels<T, IO>(dz, row, of(p, group)), Keep(seq, row),
                                            taps + p * (filter.taps + 1) * W, filter.taps, grad_of(p), begin, end,
                                            to + p * sums_size(filter.taps, W), past_caches);
    }

    void add(const T* to, int workers, Group group, void* dweight, void* dbias) const {
        for (int worker = 0; worker < workers; ++worker)
            for (int64_t p = 0; p < count; ++p)
                add_sums(to + worker * sums() + p * sums_size(filter.taps, W), filter.taps, of(p, group),
                         static_cast<T*>(dweight), static_cast<T*>(dbias));
    }
};

}  // namespace
}  // namespace hyena
