// Rows of more positions than a transform has points, convolved section by section with filters of up to P taps.
#pragma once

#include "../fft/fft.h"
#include "sequences.h"

namespace hyena {
namespace {

// Positions [first, first + points) of a row, as far as it has them, as a row of their own.
HYENA_INLINE Row section(const Row& row, int64_t first, int64_t points) {
    const int64_t left = row.length - first;
    return {row.batch, row.start + first, left < points ? left : points};
}

// Sections of the longest row; 1 where every row fits the transform.
int64_t most_sections(const Sequence& seq, int64_t points) {
    int64_t most = 1;
    for (int64_t r = 0; r < seq.num_rows; ++r)
        if (seq.rows[r].length > most * points) most = (seq.rows[r].length + points - 1) / points;
    return most;
}

// What a section adds to the next one: the imaginary part of its convolution, a vector for each of P positions.
template <class T>
struct Tail {
    static constexpr int W = Simd<T>::W;
    T* data;  // null where rows have one section

    // Before the first section of a row.
    void start(int64_t points) const {
        if (data) std::memset(data, 0, size_t(points) * W * sizeof(T));
    }
    // The result at position t of a section whose own convolution gives `v` there.
    HYENA_INLINE Vec<T> joined(int64_t t, Cx<T> v) const {
        if (!data) return v.re;
        const Vec<T> sum = v.re + load(data + t * W);
        store(data + t * W, v.im);
        return sum;
    }
};

}  // namespace
}  // namespace hyena
