// Small matrices with rows and columns exchanged.
#pragma once

#include "simd.h"

namespace hyena {
namespace {

// Rows and columns of a square: a vector of 16 bytes, which every instruction set here has.
template <class T>
constexpr int kSquare = 16 / sizeof(T);

// to[i * to_step + j] = from[j * from_step + i] for i, j < kSquare<T>.
HYENA_INLINE void transpose_square(const float* from, int64_t from_step, float* to, int64_t to_step) {
    typedef float V __attribute__((vector_size(16)));
    typedef int32_t I __attribute__((vector_size(16)));
    V row[4];
    HYENA_UNROLL
    for (int j = 0; j < 4; ++j) std::memcpy(&row[j], from + j * from_step, sizeof(V));
    const I even{0, 4, 1, 5}, odd{2, 6, 3, 7}, first{0, 1, 4, 5}, second{2, 3, 6, 7};
    const V low[2] = {__builtin_shuffle(row[0], row[1], even), __builtin_shuffle(row[2], row[3], even)};
    const V high[2] = {__builtin_shuffle(row[0], row[1], odd), __builtin_shuffle(row[2], row[3], odd)};
    const V column[4] = {__builtin_shuffle(low[0], low[1], first), __builtin_shuffle(low[0], low[1], second),
                         __builtin_shuffle(high[0], high[1], first), __builtin_shuffle(high[0], high[1], second)};
    HYENA_UNROLL
    for (int i = 0; i < 4; ++i) std::memcpy(to + i * to_step, &column[i], sizeof(V));
}

HYENA_INLINE void transpose_square(const double* from, int64_t from_step, double* to, int64_t to_step) {
    for (int i = 0; i < 2; ++i)
        for (int j = 0; j < 2; ++j) to[i * to_step + j] = from[j * from_step + i];
}

// The same for `rows` rows of `from` and `columns` columns.
template <class T>
void transpose(const T* from, int64_t from_step, int64_t rows, int64_t columns, T* to, int64_t to_step) {
    const int64_t whole_rows = rows / kSquare<T> * kSquare<T>, whole_columns = columns / kSquare<T> * kSquare<T>;
    for (int64_t j = 0; j < whole_rows; j += kSquare<T>)
        for (int64_t i = 0; i < whole_columns; i += kSquare<T>)
            transpose_square(from + j * from_step + i, from_step, to + i * to_step + j, to_step);
    for (int64_t j = 0; j < rows; ++j)
        for (int64_t i = j < whole_rows ? whole_columns : 0; i < columns; ++i)
            to[i * to_step + j] = from[j * from_step + i];
}

}  // namespace
}  // namespace hyena
