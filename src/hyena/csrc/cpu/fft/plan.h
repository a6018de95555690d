// Plans of transforms of P points: how each is cut up, and its tables of twiddles. No instruction set in here.
//
// P = P1 * P2, time t = n1 * P2 + n2: P2 column transforms of P1 points, a twiddle, P1 row transforms of P2 points (the
// "four-step" transform: Bailey 1990). With columns of up to a few hundred points, each pass over the data works in the
// first cache level. Short transforms are one row (P1 = 1), of about that cache's size.
//
// The nouns of this room:
// - Plan: P = P1 * P2, the radices of columns and rows (Factors), and tables of twiddles.
// - stage: one radix over all points of a transform; butterfly: the transform of R points in registers (fft.h).
// - Passes: the right-angle transform as columns_in, rows_through, columns_out (right_angle.h). `buffer` holds the
// matrix, `local` a few columns.
// - HeldPlan: a plan that stays while it is in use; Ahead: addresses to prefetch.
//
// E.g. P = 320 where a single row has at most 256: columns of P1 = 16 points with radices 4, 4, and rows of P2 = 20
// with radices 5, 4. Time t = 20 n1 + n2 is multiplied by exp(i pi n1 / 32) as it is read (the table `twist`); column
// n2 is transformed and multiplied by exp(i pi n2 / 640) exp(-2 i pi n2 k1 / 320) (`between`), frequency k1 standing at
// position 4 (k1 mod 4) + k1 / 4 of the column; then each of the 16 rows is transformed. Rows are 21 points apart in
// the buffer, columns 17 in `local`, which has eight of them. All tables have 2960 bytes in float32.
#pragma once

#include <cstdint>

namespace hyena {

template <class T>
struct Factors {
    int n = 1;
    int stages = 0;
    int radix[16] = {};
    const T* twiddles[16] = {};  // stage s: (block / radix) x (radix - 1) complex numbers
};

template <class T>
struct Plan {
    int64_t size = 0;  // P
    Factors<T> column, row;
    int64_t columns_at_once = 1;
    const T* twist = nullptr;  // P1 complex: exp(i pi n1 P2 / (2 P)), the part of the twist that varies within a column
    const T* between = nullptr;  // P complex, [position of k1][n2]: exp(i pi n2 / (2 P)) exp(-2 i pi n2 k1 / P)
};

// The plan for P points (2^a 3^b 5^c), made at the first call and kept for the next, as long as all plans kept are no
// larger than a few long ones (kKeptTables in plan.cpp): those longest unused go first, and never one that is in use.
// Transforms of up to `single_row` points, one number for all calls of a process, are not cut up. Every take_plan needs
// its give_back_plan; safe to call from several threads, and in the child of a fork.
template <class T>
const Plan<T>& take_plan(int64_t points, int64_t single_row);
template <class T>
void give_back_plan(const Plan<T>& plan);

// Frees all plans that are not in use.
void clear_plans();
// Bytes of all plans that there are.
int64_t bytes_of_plans();

}  // namespace hyena
