// Transforms of R points in a thread's registers, R = 1, 2, 3, 4, 5, 8, 16, and the constants of the twist.
#pragma once

#include <utility>

#include "portable.h"

namespace hyena::cuda {

// A constant that may be passed as an argument (std::integral_constant converts on the host only).
template <int N>
struct Int {
    static constexpr int value = N;
    HYENA_DEVICE constexpr operator int() const { return N; }
};

// fn(Int<0>{}), …, fn(Int<N - 1>{}): a loop whose index is a constant.
template <class Fn, int... I>
HYENA_DEVICE void each_of(Fn&& fn, std::integer_sequence<int, I...>) {
    (fn(Int<I>{}), ...);
}
template <int N, class Fn>
HYENA_DEVICE void unrolled(Fn&& fn) {
    each_of(fn, std::make_integer_sequence<int, N>{});
}

// fn(Int<radix>{}).
template <class Fn>
HYENA_DEVICE void with_radix(int radix, Fn&& fn) {
    switch (radix) {
        case 16: fn(Int<16>{}); break;
        case 8: fn(Int<8>{}); break;
        case 5: fn(Int<5>{}); break;
        case 4: fn(Int<4>{}); break;
        case 3: fn(Int<3>{}); break;
        case 2: fn(Int<2>{}); break;
        default: fn(Int<1>{}); break;
    }
}

// cos and sin of pi * num / den, |num / den| <= 2, at compile time.
constexpr double series(double x, double term, int from) {
    double sum = term;
    for (int k = from; k < from + 40; k += 2) {
        term *= -x * x / ((double)k * (k + 1));
        sum += term;
    }
    return sum;
}
constexpr double kPi = 3.14159265358979323846;
constexpr double cos_pi(int num, int den) { return series(kPi * num / den, 1.0, 1); }
constexpr double sin_pi(int num, int den) { return series(kPi * num / den, kPi * num / den, 2); }

// Times exp(i pi num / den), or its conjugate.
template <int kNum, int kDen, bool kInverse = false>
HYENA_DEVICE Cx turned(Cx a) {
    if constexpr (kNum == 0) return a;
    constexpr float c = (float)cos_pi(kNum, kDen), s = (float)sin_pi(kInverse ? -kNum : kNum, kDen);
    if constexpr (2 * kNum == kDen || 2 * kNum == -kDen) return s > 0 ? Cx{-a.im, a.re} : Cx{a.im, -a.re};
    return {a.re * c - a.im * s, a.re * s + a.im * c};
}

// Times -i (forward) or i (inverse).
template <bool kInverse>
HYENA_DEVICE Cx rotated(Cx a) {
    return kInverse ? Cx{-a.im, a.re} : Cx{a.im, -a.re};
}

template <bool kInverse>
HYENA_DEVICE void butterfly4(Cx& a, Cx& b, Cx& c, Cx& d) {
    const Cx s = a + c, t = a - c, u = b + d, v = rotated<kInverse>(b - d);
    a = s + u;
    b = t + v;
    c = s - u;
    d = t - v;
}

// Natural order in and out, not scaled: exp(-2 i pi j k / R) forward, its conjugate inverse.
template <int R, bool kInverse>
HYENA_DEVICE void butterfly(Cx* a) {
    if constexpr (R == 2) {
        const Cx t = a[0] - a[1];
        a[0] = a[0] + a[1];
        a[1] = t;
    } else if constexpr (R == 3) {
        constexpr float h = (float)sin_pi(1, 3);
        const Cx s = a[1] + a[2], d = rotated<kInverse>(a[1] - a[2]);
        const Cx m = {a[0].re - 0.5f * s.re, a[0].im - 0.5f * s.im}, e = {d.re * h, d.im * h};
        a[0] = a[0] + s;
        a[1] = m + e;
        a[2] = m - e;
    } else if constexpr (R == 4) {
        butterfly4<kInverse>(a[0], a[1], a[2], a[3]);
    } else if constexpr (R == 5) {
        constexpr float c1 = (float)cos_pi(2, 5), c2 = (float)cos_pi(4, 5), s1 = (float)sin_pi(2, 5), s2 = (float)sin_pi(4, 5);
        const Cx p = a[1] + a[4], q = a[2] + a[3], u = rotated<kInverse>(a[1] - a[4]), v = rotated<kInverse>(a[2] - a[3]);
        const Cx m1 = {a[0].re + p.re * c1 + q.re * c2, a[0].im + p.im * c1 + q.im * c2};
        const Cx m2 = {a[0].re + p.re * c2 + q.re * c1, a[0].im + p.im * c2 + q.im * c1};
        const Cx e1 = {u.re * s1 + v.re * s2, u.im * s1 + v.im * s2}, e2 = {u.re * s2 - v.re * s1, u.im * s2 - v.im * s1};
        a[0] = a[0] + p + q;
        a[1] = m1 + e1;
        a[4] = m1 - e1;
        a[2] = m2 + e2;
        a[3] = m2 - e2;
    } else if constexpr (R == 8 || R == 16) {
        // R = 4 * M: time n = M * n1 + n2, frequency k = k1 + 4 * k2.
        constexpr int M = R / 4;
        Cx b[R];
        unrolled<M>([&](auto n2) {
            constexpr int N2 = decltype(n2)::value;
            Cx x0 = a[N2], x1 = a[M + N2], x2 = a[2 * M + N2], x3 = a[3 * M + N2];
            butterfly4<kInverse>(x0, x1, x2, x3);
            b[N2] = x0;
            b[M + N2] = turned<-2 * N2, R, kInverse>(x1);
            b[2 * M + N2] = turned<-4 * N2, R, kInverse>(x2);
            b[3 * M + N2] = turned<-6 * N2, R, kInverse>(x3);
        });
        unrolled<4>([&](auto k1) {
            butterfly<M, kInverse>(b + k1 * M);
            unrolled<M>([&](auto k2) { a[k1 + 4 * k2] = b[k1 * M + k2]; });
        });
    } else {
        static_assert(R == 1, "radices are 2, 3, 4, 5, 8 and 16");
    }
}

}  // namespace hyena::cuda
