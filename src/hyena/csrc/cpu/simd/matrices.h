// Products of small matrices that stay in the caches.
//
// Matrices lie in panels: B columns next to each other, all rows of the first panel, then of the second, … (the last
// may be narrower, but is a multiple of a vector wide, zeros behind its last column). A panel is read from its first
// byte to its last whatever the matrix' width, where rows a power of two apart would crowd into a few sets of the
// cache.
#pragma once

#include "lane_block.h"
#include "simd.h"

namespace hyena {
namespace {

// Vectors in a row of a panel, and rows of a product computed at once: as many sums as fit into registers beside their
// factors, and enough to keep two multipliers with a latency of four cycles busy.
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int kPanelVectors = 4;
#else
constexpr int kPanelVectors = 2;
#endif
constexpr int kRowsAtOnce = 6;

template <class T>
struct Panels {
    static constexpr int W = Simd<T>::W, B = kPanelVectors * W;
    T* data;
    int64_t rows, columns;

    static int64_t padded(int64_t columns) { return (columns + W - 1) / W * W; }
    static int64_t size(int64_t rows, int64_t columns) { return rows * padded(columns); }
    int64_t size() const { return size(rows, columns); }
    int64_t count() const { return (columns + B - 1) / B; }
    int64_t used(int64_t p) const { return columns - p * B < B ? columns - p * B : B; }
    int64_t width(int64_t p) const { return padded(used(p)); }
    T* panel(int64_t p) const { return data + p * B * rows; }
    T& at(int64_t row, int64_t column) const {
        const int64_t p = column / B;
        return panel(p)[row * width(p) + column % B];
    }
};

// The factor a: element (m, k) is at data[place of m + place of k]. Its columns follow each other in memory, or else
// its rows, and may step from one channel block to the next by another distance than inside.
template <class T>
struct Left {
    const T* data;
    int64_t row, column, row_block, column_block, first = 0;

    Left(const T* at, int64_t row_step, int64_t column_step)
        : Left(at, row_step, column_step, kLaneBlock * row_step, kLaneBlock * column_step) {}
    Left(const T* at, int64_t row_step, int64_t column_step, int64_t row_block_step, int64_t column_block_step)
        : data(at), row(row_step), column(column_step), row_block(row_block_step), column_block(column_block_step) {}
    Left from_row(int64_t m) const {
        Left rest = *this;
        rest.first += m;
        return rest;
    }
    template <bool kTransposed>
    HYENA_INLINE const T* at(int64_t m) const {
        if (!kTransposed) return data + (first + m) * row;
        return data + (first + m) / kLaneBlock * row_block + (first + m) % kLaneBlock * row;
    }
    // How many rows from m on, of `rows`, are a step apart.
    template <bool kTransposed>
    HYENA_INLINE int64_t together(int64_t m, int64_t rows) const {
        const int64_t left = rows - m, same_block = kLaneBlock - (first + m) % kLaneBlock;
        return kTransposed && same_block < left ? same_block : left;
    }
};

// The result c: element (m, n) is at data[m * row + n / 16 * block + n % 16].
template <class T>
struct Result {
    T* data;
    int64_t row, block = kLaneBlock;
    bool past_caches = false;  // nobody reads it before it is out of them

    Result from_row(int64_t m) const { return {data + m * row, row, block, past_caches}; }
    HYENA_INLINE T* at(int m, int n) const { return data + m * row + n / kLaneBlock * block + n % kLaneBlock; }
};

// c[m, :] = start + sum over k < depth of a[m, k] * b[k, :], for m < M and N vectors of columns. `start` is c itself if
// `add`, else the vectors at `bias`, or zero. What is added to c is summed up by itself first: in one chain over all
// calls, a sum over a million rows would be wrong in its third digit.
template <bool kTransposed, class T, int M, int N>
HYENA_INLINE void multiply_block(int64_t depth, const Left<T>& a, const T* b, const Result<T>& c, bool add,
                                 const T* bias) {
    constexpr int W = Simd<T>::W, kUpper = M / 2;
    Vec<T> sum[M][N];
    HYENA_UNROLL
    for (int m = 0; m < M; ++m) {
        HYENA_UNROLL
        for (int n = 0; n < N; ++n) sum[m][n] = bias && !add ? load(bias + n * W) : zero<T>();
    }
    const int64_t row = kTransposed ? 1 : a.row, column = kTransposed ? a.column : 1;
    // Rows are addressed from two pointers by one step, once and twice: an address of its own for each would take more
    // registers than there are.
    const auto add_column = [&](const T* upper, const T* lower, const T* from) HYENA_LAMBDA {
        Vec<T> factor[N];
        HYENA_UNROLL
        for (int n = 0; n < N; ++n) factor[n] = load(from + n * W);
        HYENA_UNROLL
        for (int m = 0; m < M; ++m) {
            const T x = m < kUpper ? upper[m * row] : lower[(m - kUpper) * row];
            HYENA_UNROLL
            for (int n = 0; n < N; ++n) sum[m][n] += x * factor[n];
        }
    };
    const T* block = a.template at<kTransposed>(0);
    for (; depth >= kLaneBlock; depth -= kLaneBlock, block += a.column_block) {
        if constexpr (kTransposed) {
            for (int k = 0; k < kLaneBlock; ++k) __builtin_prefetch(block + a.row_block + k * column);
        } else {
            HYENA_UNROLL
            for (int m = M; m < 2 * M; ++m) __builtin_prefetch(block + m * row);
        }
        const T *upper = block, *lower = block + kUpper * row;
        for (int k = 0; k < kLaneBlock; k += 2, b += 2 * N * W, upper += 2 * column, lower += 2 * column) {
            add_column(upper, lower, b);
            add_column(upper + column, lower + column, b + N * W);
        }
    }
    for (; depth > 0; --depth, block += column, b += N * W) add_column(block, block + kUpper * row, b);
    HYENA_UNROLL
    for (int m = 0; m < M; ++m) {
        HYENA_UNROLL
        for (int n = 0; n < N; ++n) {
            T* to = c.at(m, n * W);
            if (add) sum[m][n] += load(to);
            if (c.past_caches)
                stream_lanes<T>(to, sum[m][n], W);
            else
                store(to, sum[m][n]);
        }
    }
}

template <bool kTransposed, class T, int N>
__attribute__((noinline)) void multiply_rows(int64_t rows, int64_t depth, const Left<T>& a, const T* b,
                                             const Result<T>& c, bool add, const T* bias) {
    int64_t m = 0;
    const auto next = [&](auto count) HYENA_LAMBDA {
        constexpr int M = decltype(count)::value;
        multiply_block<kTransposed, T, M, N>(depth, a.from_row(m), b, c.from_row(m), add, bias);
        m += M;
    };
    while (m < rows) {
        const int64_t together = a.template together<kTransposed>(m, rows);
        if (kTransposed && together % 5 == 0)  // so that 16 are 6, 5 and 5
            next(std_int<5>{});
        else if (together >= kRowsAtOnce)
            next(std_int<kRowsAtOnce>{});
        else if (together >= 4)
            next(std_int<4>{});
        else if (together >= 2)
            next(std_int<2>{});
        else
            next(std_int<1>{});
    }
}

// `kTransposed` if rows of the factor a follow each other in memory, and not its columns: it then asks for other lines.
template <bool kTransposed, class T>
void multiply_panel(int64_t rows, int64_t depth, const Left<T>& a, const T* b, int64_t width, const Result<T>& c,
                    bool add, const T* bias) {
    static_assert(kPanelVectors <= 4);
    switch (width / Simd<T>::W) {
        case 1: return multiply_rows<kTransposed, T, 1>(rows, depth, a, b, c, add, bias);
        case 2: return multiply_rows<kTransposed, T, 2>(rows, depth, a, b, c, add, bias);
        case 3: return multiply_rows<kTransposed, T, 3>(rows, depth, a, b, c, add, bias);
        case 4: return multiply_rows<kTransposed, T, 4>(rows, depth, a, b, c, add, bias);
    }
}

// The same for any number of rows and a panel `width` wide.
template <class T>
void multiply(int64_t rows, int64_t depth, const Left<T>& a, const T* b, int64_t width, const Result<T>& c, bool add,
              const T* bias = nullptr) {
    if (a.column == 1)
        multiply_panel<false>(rows, depth, a, b, width, c, add, bias);
    else
        multiply_panel<true>(rows, depth, a, b, width, c, add, bias);
}

// The first `rows` rows of panel p of c = a b (+ c if `add`, + bias otherwise, if there is one).
template <class T>
void product_panel(int64_t rows, const Panels<T>& a, const Panels<T>& b, int64_t p, T* c, bool add,
                   const T* bias = nullptr) {
    const int64_t width = b.width(p);
    for (int64_t q = 0; q < a.count(); ++q)
        multiply<T>(rows, a.used(q), Left<T>(a.panel(q), a.width(q), 1), b.panel(p) + q * a.B * width, width,
                    Result<T>{c, width}, add || q > 0, bias);
}

// Panel p of c += a^T b, of the first `rows` rows of both; `b` is that panel of b.
template <class T>
void add_transposed_product(int64_t rows, const Panels<T>& a, const T* b, const Panels<T>& c, int64_t p) {
    const int64_t width = c.width(p);
    for (int64_t q = 0; q < a.count(); ++q)
        multiply<T>(a.used(q), rows, Left<T>(a.panel(q), 1, a.width(q)), b, width,
                    Result<T>{c.panel(p) + q * a.B * width, width}, true);
}

}  // namespace
}  // namespace hyena
