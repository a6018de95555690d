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

// The plan for P points (2^a 3^b 5^c), made at the first call and kept; safe to call from several threads.
template <class T>
const Plan<T>& plan_for(int64_t points);

}  // namespace hyena
