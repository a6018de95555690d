// The short convolution of one group of channels, forward and backward.
#pragma once

#include "../simd/ahead.h"
#include "../simd/runs.h"
#include "sequences.h"
#include "work.h"

namespace hyena {
namespace {

// One of the N + 1 parts of z after the short convolution: zero outside the row and where the mask says so.
template <class T, class IO>
struct Convolved {
    Channels<T, IO> z;
    Keep keep;
    const T* taps;  // K vectors, the current position's last, then the bias
    int64_t count;

    HYENA_INLINE Vec<T> operator[](int64_t t) const {
        if (!keep[t]) return zero<T>();
        if (__builtin_expect(is_usual() && t >= 2, 1)) return three(t);
        return any(t);
    }

    // Three taps and no mask. Who asks once for many positions of the row reads them with at<true>.
    bool is_usual() const { return count == 3 && !keep.mask; }
    template <bool kUsual>
    HYENA_INLINE Vec<T> at(int64_t t) const {
        if constexpr (kUsual)
            return __builtin_expect(t >= 2, 1) ? three(t) : any(t);
        else
            return (*this)[t];
    }

  private:
    HYENA_INLINE Vec<T> three(int64_t t) const {
        constexpr int W = Simd<T>::W;
        return load(taps + 3 * W) + load(taps + 2 * W) * z[t] + load(taps + W) * z[t - 1] + load(taps) * z[t - 2];
    }
    __attribute__((noinline)) Vec<T> any(int64_t t) const {
        constexpr int W = Simd<T>::W;
        Vec<T> sum = load(taps + count * W);
        for (int64_t j = 0; j < count && j <= t; ++j)
            if (keep[t - j]) sum += load(taps + (count - 1 - j) * W) * z[t - j];
        return sum;
    }
};

// Lays the short filter of one group out in lanes: K vectors of taps and one of biases.
template <class T>
void lay_out(const ShortFilter& filter, Group group, T* to) {
    constexpr int W = Simd<T>::W;
    const T* weight = static_cast<const T*>(filter.weight) + group.first * filter.taps;
    const T* bias = filter.bias ? static_cast<const T*>(filter.bias) + group.first : nullptr;
    for (int lane = 0; lane < W; ++lane)
        for (int64_t k = 0; k <= filter.taps; ++k) {
            T value = 0;
            if (lane < group.lanes)
                value = k < filter.taps ? weight[lane * filter.taps + k] : (bias ? bias[lane] : T(0));
            to[k * W + lane] = value;
        }
}

// The sums over positions that make the gradients of a group's taps and of its bias: K + 1 long sums, of two vectors
// each.
inline int64_t sums_size(int64_t taps, int lanes) { return 2 * (taps + 1) * lanes; }

template <class T>
HYENA_INLINE void add_to_sum(T* sums, int64_t k, Vec<T> v) {
    constexpr int W = Simd<T>::W;
    LongSum<T> sum{load(sums + 2 * k * W), load(sums + (2 * k + 1) * W)};
    sum.add(v);
    store(sums + 2 * k * W, sum.total);
    store(sums + (2 * k + 1) * W, sum.left_out);
}

// The usual three taps, with everything in registers, for positions with two more behind them.
template <class T, class IO>
void three_taps_backward(const Channels<T, IO>& z, const Channels<T, IO>& dz, const T* taps, const Runs<T>& grad,
                         int64_t begin, int64_t end, T* sums, bool past_caches) {
    constexpr int W = Simd<T>::W;
    if (begin >= end) return;
    Ahead ahead;
    ahead.add(z);
    if (!past_caches) ahead.add(dz);
    ahead.length = end;
    const Vec<T> w0 = load(taps), w1 = load(taps + W), w2 = load(taps + 2 * W);
    BlockedSum<T> s0, s1, s2, s3;
    Vec<T> now = load(grad(begin)), next = load(grad(begin + 1));
    for (int64_t first = begin; first < end;) {
        const int64_t run = grad.end(first + 2) - 2, last = run < end ? run : end;
        const T* behind = grad(first + 2) - first * grad.step;
        for (int64_t t = first; t < last; ++t) {
            ahead(t + kReadAhead);
            const Vec<T> after = load(behind + t * grad.step), x = z[t];
            dz.put(t, w2 * now + w1 * next + w0 * after, past_caches);
            s0.add(after * x);
            s1.add(next * x);
            s2.add(now * x);
            s3.add(now);
            now = next;
            next = after;
        }
        first = last;
    }
    add_to_sum<T>(sums, 0, s0.value());
    add_to_sum<T>(sums, 1, s1.value());
    add_to_sum<T>(sums, 2, s2.value());
    add_to_sum<T>(sums, 3, s3.value());
}

// dz, and sums for dweight and dbias, from the gradient after the short convolution.
//
// `grad(t)` is W lanes of that gradient, zero where a position is not kept. `past_caches` if dz is long.
template <class T, class IO>
void short_conv_backward_span(const Channels<T, IO>& z, const Channels<T, IO>& dz, const Keep& keep, const T* taps,
                              int64_t count, const Runs<T>& grad, int64_t begin, int64_t end, T* sums,
                              bool past_caches) {
    constexpr int W = Simd<T>::W;
    if (count == 3 && !keep.mask) {
        const int64_t inside = end < keep.length - 2 ? end : keep.length - 2;
        three_taps_backward(z, dz, taps, grad, begin, inside, sums, past_caches);
        if (begin < inside) begin = inside;
    }
    for (int64_t first = begin, last; first < end; first = last) {
        last = first + kSumBlock < end ? first + kSumBlock : end;
        const int64_t run = grad.end(first);
        if (run < last) last = run;
        const T* here = grad(first) - first * grad.step;
        const auto gradient = [&](int64_t t) HYENA_LAMBDA { return load(t < run ? here + t * grad.step : grad(t)); };
        Vec<T> bias = zero<T>();
        for (int64_t t = first; t < last; ++t) {
            bias += gradient(t);
            Vec<T> sum = zero<T>();
            if (keep[t])
                for (int64_t j = 0; j < count && t + j < keep.length; ++j)
                    sum += load(taps + (count - 1 - j) * W) * gradient(t + j);
            dz.put(t, sum);
        }
        add_to_sum<T>(sums, count, bias);
        for (int64_t j = 0; j < count; ++j) {
            Vec<T> sum = zero<T>();
            for (int64_t t = first; t < last && t + j < keep.length; ++t)
                if (keep[t]) sum += gradient(t + j) * z[t];
            add_to_sum<T>(sums, count - 1 - j, sum);
        }
    }
}

// Adds a group's sums to (channels, taps) and (channels) gradients, of which it is the only writer.
template <class T>
void add_sums(const T* sums, int64_t taps, Group group, T* dweight, T* dbias) {
    constexpr int W = Simd<T>::W;
    const auto sum = [&](int64_t k, int lane) { return sums[2 * k * W + lane] + sums[(2 * k + 1) * W + lane]; };
    for (int lane = 0; lane < group.lanes; ++lane) {
        for (int64_t k = 0; k < taps; ++k) dweight[(group.first + lane) * taps + k] += sum(k, lane);
        dbias[group.first + lane] += sum(taps, lane);
    }
}

template <class T, class IO>
struct ShortConv {
    static constexpr int W = Simd<T>::W;
    const ShortConvArgs& a;

    int64_t groups() const { return (a.channels + W - 1) / W; }
    Group group(int64_t i) const {
        const int64_t left = a.channels - i * W;
        return {i * W, int(left < W ? left : W)};
    }

    void forward() const {
        const int64_t rows = a.seq.num_rows;
        share(
            a.seq.pool, rows * groups(), [&](int) { return Memory<T>((a.filter.taps + 1) * W); },
            [&](int64_t task, const Memory<T>& taps, Team team) {
                const Row& row = a.seq.rows[task / groups()];
                const Group g = group(task % groups());
                lay_out(a.filter, g, taps.get());
                const Convolved<T, IO> x{Channels<T, IO>(a.z, row, g), Keep(a.seq, row), taps.get(), a.filter.taps};
                const Channels<T, IO> y(a.y, row, g);
                Ahead ahead;
                ahead.add(x.z);
                ahead.add(y);
                ahead.length = row.length;
                team.over(row.length, [&](int64_t t0, int64_t t1, int) {
                    for (int64_t t = t0; t < t1; ++t) {
                        ahead(t + kReadAhead);
                        y.put(t, x[t]);
                    }
                });
            });
    }

    struct BackwardMemory {
        Memory<T> taps, sums, grad;
        BackwardMemory(const ShortConv& s, int parts)
            : taps((s.a.filter.taps + 1) * W), sums(sums_size(s.a.filter.taps, W) * parts), grad(s.longest() * W) {}
    };
    int64_t longest() const {
        int64_t n = 0;
        for (int64_t r = 0; r < a.seq.num_rows; ++r) n = a.seq.rows[r].length > n ? a.seq.rows[r].length : n;
        return n;
    }

    void backward() const {
        const int64_t each = sums_size(a.filter.taps, W);
        share(
            a.seq.pool, groups(), [&](int parts) { return BackwardMemory(*this, parts); },
            [&](int64_t i, const BackwardMemory& m, Team team) {
                const Group g = group(i);
                lay_out(a.filter, g, m.taps.get());
                std::memset(m.sums.get(), 0, each * team.parts * sizeof(T));
                for (int64_t r = 0; r < a.seq.num_rows; ++r) {
                    const Row& row = a.seq.rows[r];
                    const Keep keep(a.seq, row);
                    const Channels<T, IO> dy(a.dy, row, g);
                    const Runs<T> grad{m.grad.get(), W, row.length, 0};
                    const bool past_caches =
                        a.seq.num_rows * row.length * a.channels * int64_t(sizeof(IO)) > kResultInCache;
                    Ahead ahead;
                    ahead.add(dy);
                    ahead.length = row.length;
                    team.over(row.length, [&](int64_t t0, int64_t t1, int) {
                        for (int64_t t = t0; t < t1; ++t) {
                            ahead(t + kReadAhead);
                            store(m.grad.get() + t * W, keep[t] ? dy[t] : zero<T>());
                        }
                    });
                    team.over(row.length, [&](int64_t t0, int64_t t1, int part) {
                        short_conv_backward_span<T, IO>(Channels<T, IO>(a.z, row, g), Channels<T, IO>(a.dz, row, g),
                                                        keep, m.taps.get(), a.filter.taps, grad, t0, t1,
                                                        m.sums.get() + part * each, past_caches);
                    });
                }
                for (int part = 0; part < team.parts; ++part)
                    add_sums(m.sums.get() + part * each, a.filter.taps, g, static_cast<T*>(a.dweight),
                             static_cast<T*>(a.dbias));
            });
    }
};

}  // namespace
}  // namespace hyena
