// Products of small matrices that stay in the caches.
//
// Matrices lie in panels: B columns next to each other, all rows of the first panel, then of the second, … (the last
// may be narrower, but is a multiple of a vector wide, zeros behind its last column). A panel is read from its first
// byte to its last whatever the matrix' width, where rows a power of two apart would crowd into a few sets of the
// cache.
#pragma once

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

// c[m * cm …] = start + sum over k < depth of a[m * am + k * ak] * b[k, :], for m < M and N vectors of columns.
// `start` is c itself if `add`, else the vectors at `bias`, or zero. What is added to c is summed up by itself first:
// in one chain over all calls, a sum over a million rows would be wrong in its third digit.
template <class T, int M, int N>
HYENA_INLINE void multiply_block(int64_t depth, const T* a, int64_t am, int64_t ak, const T* b, T* c, int64_t cm,
                                 bool add, const T* bias) {
    constexpr int W = Simd<T>::W;
    Vec<T> sum[M][N];
    HYENA_UNROLL
    for (int m = 0; m < M; ++m) {
        HYENA_UNROLL
        for (int n = 0; n < N; ++n) sum[m][n] = bias && !add ? load(bias + n * W) : zero<T>();
    }
    for (int64_t k = 0; k < depth; ++k) {
        Vec<T> row[N];
        HYENA_UNROLL
        for (int n = 0; n < N; ++n) row[n] = load(b + (k * N + n) * W);
        HYENA_UNROLL
        for (int m = 0; m < M; ++m) {
            const T x = a[m * am + k * ak];
            HYENA_UNROLL
            for (int n = 0; n < N; ++n) sum[m][n] += x * row[n];
        }
    }
    HYENA_UNROLL
    for (int m = 0; m < M; ++m) {
        HYENA_UNROLL
        for (int n = 0; n < N; ++n) {
            T* to = c + m * cm + n * W;
            store(to, add ? load(to) + sum[m][n] : sum[m][n]);
        }
    }
}

template <class T, int N>
__attribute__((noinline)) void multiply_rows(int64_t rows, int64_t depth, const T* a, int64_t am, int64_t ak,
                                             const T* b, T* c, int64_t cm, bool add, const T* bias) {
    int64_t m = 0;
    for (; m + kRowsAtOnce <= rows; m += kRowsAtOnce)
        multiply_block<T, kRowsAtOnce, N>(depth, a + m * am, am, ak, b, c + m * cm, cm, add, bias);
    for (; m + 2 <= rows; m += 2) multiply_block<T, 2, N>(depth, a + m * am, am, ak, b, c + m * cm, cm, add, bias);
    for (; m < rows; ++m) multiply_block<T, 1, N>(depth, a + m * am, am, ak, b, c + m * cm, cm, add, bias);
}

// The same for any number of rows and a panel `width` wide.
template <class T>
void multiply(int64_t rows, int64_t depth, const T* a, int64_t am, int64_t ak, const T* b, int64_t width, T* c,
              int64_t cm, bool add, const T* bias = nullptr) {
    static_assert(kPanelVectors <= 4);
    switch (width / Simd<T>::W) {
        case 1: return multiply_rows<T, 1>(rows, depth, a, am, ak, b, c, cm, add, bias);
        case 2: return multiply_rows<T, 2>(rows, depth, a, am, ak, b, c, cm, add, bias);
        case 3: return multiply_rows<T, 3>(rows, depth, a, am, ak, b, c, cm, add, bias);
        case 4: return multiply_rows<T, 4>(rows, depth, a, am, ak, b, c, cm, add, bias);
    }
}

// The first `rows` rows of panel p of c = a b (+ c if `add`, + bias otherwise, if there is one).
template <class T>
void product_panel(int64_t rows, const Panels<T>& a, const Panels<T>& b, int64_t p, T* c, bool add,
                   const T* bias = nullptr) {
    const int64_t width = b.width(p);
    for (int64_t q = 0; q < a.count(); ++q)
        multiply<T>(rows, a.used(q), a.panel(q), a.width(q), 1, b.panel(p) + q * a.B * width, width, c, width,
                    add || q > 0, bias);
}

// Panel p of c += a^T b, of the first `rows` rows of both; `b` is that panel of b.
template <class T>
void add_transposed_product(int64_t rows, const Panels<T>& a, const T* b, const Panels<T>& c, int64_t p) {
    const int64_t width = c.width(p);
    for (int64_t q = 0; q < a.count(); ++q)
        multiply<T>(a.used(q), rows, a.panel(q), 1, a.width(q), b, width, c.panel(p) + q * a.B * width, width, true);
}

}  // namespace
}  // namespace hyena
