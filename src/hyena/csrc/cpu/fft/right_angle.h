// The right-angle convolution of W channels: twist, transform, product, inverse, untwist.
//
// Time t of row data x is multiplied by exp(i pi t / 2P), with P >= L. What wraps around in the circular convolution of
// P points is then multiplied by i against what does not: the real part after untwisting is the causal (or two-sided)
// convolution, the imaginary part the rest. No padding to 2L, no real-transform unpacking.
//
// A row of more than P positions is convolved with up to P taps in sections of P: the imaginary part is what a section
// adds to the next one (Tail). So the gradient of a section's complex result is that of its own positions and i times
// that of the next section's.
//
// Work is offered in ranges of columns and of rows, so that one task can run them all, or several threads share them.
#pragma once

#include "../simd/ahead.h"
#include "fft.h"

namespace hyena {
namespace {

// Points of W channels that a transform goes through in one go: 64 KiB of them, a first-level cache or little more, are
// read again sooner than columns and rows would be copied.
template <class T>
constexpr int64_t kSingleRow = (int64_t(64) << 10) / int64_t(2 * Simd<T>::W * sizeof(T));

// A plan that stays as long as this does. (No smart pointer of the standard library: its functions would be compiled
// for this instruction set, and could be linked into code for another.)
template <class T>
class HeldPlan {
  public:
    explicit HeldPlan(int64_t points) : plan_(take_plan<T>(points, kSingleRow<T>)) {}
    ~HeldPlan() { give_back_plan(plan_); }
    HeldPlan(const HeldPlan&) = delete;
    HeldPlan& operator=(const HeldPlan&) = delete;
    const Plan<T>& operator*() const { return plan_; }

  private:
    const Plan<T>& plan_;
};

// A position in time, and where its point is in a buffer of Passes.
struct Point {
    int64_t t, at;
    HYENA_INLINE operator int64_t() const { return t; }
};

// Buffers larger than this (bytes) do not stay in a core's own cache beside what else is read: they are asked for ahead
// too.
constexpr int64_t kNearBuffer = int64_t(3) << 18;

// Rows of the plan's P1 x P2 matrix hold points [i * P2, (i + 1) * P2) of the spectrum and of the buffer.
template <class T>
struct Passes {
    static constexpr int W = Simd<T>::W, S = 2 * W;
    const Plan<T>& plan;

    int64_t p1() const { return plan.column.n; }
    int64_t p2() const { return plan.row.n; }
    // Distances in the buffer and between local columns are one point more than their length: powers of two would
    // put a whole column into a few sets of the cache.
    int64_t row_stride() const { return p1() > 1 ? p2() + 1 : p2(); }
    int64_t column_stride() const { return p1() + 1; }
    // Points of the buffer, and of the scratch that a thread needs for a block of columns.
    int64_t buffer() const { return p1() * row_stride(); }
    int64_t scratch() const { return p1() > 1 ? plan.columns_at_once * column_stride() : 0; }

    // Whether the outer stages of columns, the first one forward and the last one back, are of radix 8: those go
    // between the buffer and registers at once, others through local columns.
    bool outer_eight() const { return plan.column.stages > 1 && plan.column.radix[0] == 8; }

    HYENA_INLINE Point point(int64_t row, int64_t column) const {
        return {row * p2() + column, (row * row_stride() + column) * S};
    }

    // Asks for the same point of the next block of columns, or of the next row.
    HYENA_INLINE void next_block(const T* point) const { ask_for<S>(point + plan.columns_at_once * S); }
    HYENA_INLINE void next_row(const T* point) const { ask_for<S>(point + row_stride() * S); }
    bool far() const { return buffer() * S * int64_t(sizeof(T)) > kNearBuffer; }

    static HYENA_INLINE Cx<T> twisted(Vec<T> x, T c, T s) { return {x * c, x * s}; }
    static HYENA_INLINE Cx<T> twisted(Cx<T> x, T c, T s) { return twiddled<false>(x, c, s); }

    // A transform without columns: points [t0, t1) read from `read(point)` and twisted, as rows are transformed.
    template <class Read>
    HYENA_INLINE void row_in(T* buffer, int64_t t0, int64_t t1, Read&& read, const Ahead& ahead) const {
        const T* twist = plan.between;
        for (int64_t t = t0; t < t1; ++t) {
            ahead(t + kReadAhead);
            store_cx(buffer + t * S, twisted(read(Point{t, t * S}), twist[2 * t], twist[2 * t + 1]));
        }
    }
    // And back.
    template <class Write>
    HYENA_INLINE void row_out(const T* buffer, int64_t t0, int64_t t1, Write&& write, const Ahead& ahead) const {
        const T* twist = plan.between;
        for (int64_t t = t0; t < t1; ++t) {
            ahead(t + kReadAhead);
            write(Point{t, t * S}, twiddled<true>(load_cx(buffer + t * S), twist[2 * t], twist[2 * t + 1]));
        }
    }

    // Columns [c0, c1): read each time from `read(point)` (real or complex), twist, transform, write to the buffer.
    // What a column's points were in the buffer is read before it is written.
    template <class Read>
    HYENA_INLINE void columns_in(T* buffer, int64_t c0, int64_t c1, T* local, Read&& read,
                                 const Ahead& ahead = {}) const {
        const int64_t n1 = p1();
        if (n1 == 1) return row_in(buffer, c0, c1, read, ahead);
        for (int64_t c = c0; c < c1; c += plan.columns_at_once) {
            const int64_t q = c1 - c < plan.columns_at_once ? c1 - c : plan.columns_at_once;
            const auto given = [&](int64_t i, int64_t j) HYENA_LAMBDA {
                return twisted(read(point(i, c + j)), plan.twist[2 * i], plan.twist[2 * i + 1]);
            };
            if (outer_eight())
                first_of_columns(plan.column, local, q, column_stride(), given);
            else
                for (int64_t i = 0; i < n1; ++i)
                    for (int64_t j = 0; j < q; ++j) store_cx(local + (j * column_stride() + i) * S, given(i, j));
            columns_forward(buffer, c, q, local, ahead);
        }
    }

    // From local columns to the buffer.
    __attribute__((noinline)) void columns_forward(T* buffer, int64_t c, int64_t q, T* local,
                                                   const Ahead& ahead) const {
        const int64_t n2 = p2(), stride = row_stride();
        const bool ask = far();
        for (int64_t j = 0; j < q; ++j) {
            T* x = local + j * column_stride() * S;
            forward_stages(plan.column, x, outer_eight());
            last_forward_stage(plan.column, x, [&](int at, Cx<T>* a, auto r) HYENA_LAMBDA {
                HYENA_UNROLL
                for (int k = 0; k < decltype(r)::value; ++k) {
                    ahead((at + k) * n2 + c + j + plan.columns_at_once);
                    const T* w = plan.between + 2 * ((at + k) * n2 + c + j);
                    T* point = buffer + ((at + k) * stride + c + j) * S;
                    if (ask) next_block(point);
                    store_cx(point, twiddled<false>(a[k], w[0], w[1]));
                }
            });
        }
    }

    // Columns [c0, c1) back: hands each time's complex value, untwisted, to `write(point, value)`, which may put
    // something else in that point's place.
    template <class Write>
    HYENA_INLINE void columns_out(const T* buffer, int64_t c0, int64_t c1, T* local, Write&& write,
                                  const Ahead& ahead = {}) const {
        const int64_t n1 = p1();
        if (n1 == 1) return row_out(buffer, c0, c1, write, ahead);
        for (int64_t c = c0; c < c1; c += plan.columns_at_once) {
            const int64_t q = c1 - c < plan.columns_at_once ? c1 - c : plan.columns_at_once;
            columns_inverse(buffer, c, q, local, ahead);
            const auto taken = [&](int64_t i, int64_t j, Cx<T> v) HYENA_LAMBDA {
                write(point(i, c + j), twiddled<true>(v, plan.twist[2 * i], plan.twist[2 * i + 1]));
            };
            if (outer_eight())
                last_of_columns(plan.column, local, q, column_stride(), taken);
            else
                for (int64_t i = 0; i < n1; ++i)
                    for (int64_t j = 0; j < q; ++j) taken(i, j, load_cx(local + (j * column_stride() + i) * S));
        }
    }

    // From the buffer to local columns.
    __attribute__((noinline)) void columns_inverse(const T* buffer, int64_t c, int64_t q, T* local,
                                                   const Ahead& ahead) const {
        const int64_t n2 = p2(), stride = row_stride();
        const bool ask = far();
        for (int64_t j = 0; j < q; ++j) {
            T* x = local + j * column_stride() * S;
            first_inverse_stage(plan.column, x, [&](int at, Cx<T>* a, auto r) HYENA_LAMBDA {
                HYENA_UNROLL
                for (int k = 0; k < decltype(r)::value; ++k) {
                    ahead((at + k) * n2 + c + j);
                    const T* w = plan.between + 2 * ((at + k) * n2 + c + j);
                    const T* point = buffer + ((at + k) * stride + c + j) * S;
                    if (ask) next_block(point);
                    a[k] = twiddled<true>(load_cx(point), w[0], w[1]);
                }
            });
            inverse_stages(plan.column, x, outer_eight());
        }
    }

    // Rows [r0, r1): transform, hand each spectrum point to `product(point, value) -> value`, transform back.
    template <class Product>
    HYENA_INLINE void rows_through(T* buffer, int64_t r0, int64_t r1, Product&& product) const {
        const int64_t n2 = p2();
        const bool ask = far();
        for (int64_t i = r0; i < r1; ++i) {
            T* x = buffer + i * row_stride() * S;
            forward_stages(plan.row, x);
            with_radix(plan.row.stages > 0 ? plan.row.radix[plan.row.stages - 1] : 1, [&](auto r) HYENA_LAMBDA {
                constexpr int R = decltype(r)::value;
                for (int at = 0; at < n2; at += R) {
                    Cx<T> a[R];
                    HYENA_UNROLL
                    for (int k = 0; k < R; ++k) a[k] = load_cx(x + (int64_t)(at + k) * S);
                    butterfly<R, false>(a);
                    HYENA_UNROLL
                    for (int k = 0; k < R; ++k) {
                        if (ask) next_row(x + (int64_t)(at + k) * S);
                        a[k] = product(i * n2 + at + k, a[k]);
                    }
                    butterfly<R, true>(a);
                    HYENA_UNROLL
                    for (int k = 0; k < R; ++k) store_cx(x + (int64_t)(at + k) * S, a[k]);
                }
            });
            inverse_stages(plan.row, x);
        }
    }

    // Rows [r0, r1) to the spectrum, in place: each point handed to `product` before it is stored.
    template <class Product>
    HYENA_INLINE void rows_in(T* buffer, int64_t r0, int64_t r1, Product&& product) const {
        const int64_t n2 = p2();
        for (int64_t i = r0; i < r1; ++i) {
            T* x = buffer + i * row_stride() * S;
            forward_stages(plan.row, x);
            last_forward_stage(plan.row, x, [&](int at, Cx<T>* a, auto r) HYENA_LAMBDA {
                HYENA_UNROLL
                for (int k = 0; k < decltype(r)::value; ++k)
                    store_cx(x + (int64_t)(at + k) * S, product(i * n2 + at + k, a[k]));
            });
        }
    }

    // Rows [r0, r1) from the spectrum: each point asked of `product(point)`.
    template <class Product>
    HYENA_INLINE void rows_out(T* buffer, int64_t r0, int64_t r1, Product&& product) const {
        const int64_t n2 = p2();
        for (int64_t i = r0; i < r1; ++i) {
            T* x = buffer + i * row_stride() * S;
            first_inverse_stage(plan.row, x, [&](int at, Cx<T>* a, auto r) HYENA_LAMBDA {
                HYENA_UNROLL
                for (int k = 0; k < decltype(r)::value; ++k) a[k] = product(i * n2 + at + k);
            });
            inverse_stages(plan.row, x);
        }
    }
};

}  // namespace
}  // namespace hyena
