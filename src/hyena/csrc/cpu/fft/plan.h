// How a transform of P points is cut up, and its tables of twiddles. No instruction set in here.
//
// P = P1 * P2, time t = n1 * P2 + n2: P2 column transforms of P1 points, a twiddle, P1 row transforms of P2 points (the
// "four-step" transform: Bailey 1990). With columns of up to a few hundred points, each pass over the data works in the
// first cache level. Short transforms are one row (P1 = 1).
#pragma once

#include <cstdint>

namespace hyena {

template <int N>
struct std_int {
    static constexpr int value = N;
};

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
// Every take_plan needs its give_back_plan; safe to call from several threads, and in the child of a fork.
template <class T>
const Plan<T>& take_plan(int64_t points);
template <class T>
void give_back_plan(const Plan<T>& plan);

// Frees all plans that are not in use.
void clear_plans();
// Bytes of all plans that there are.
int64_t bytes_of_plans();

}  // namespace hyena
