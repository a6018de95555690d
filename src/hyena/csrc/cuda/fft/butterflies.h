// Transforms of R points in a thread's registers, R = 1, 2, 3, 4, 5, 8, 16, and the constants of the twist.
#pragma once

#include "../device/portable.h"

namespace hyena::cuda {

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
    return {a.re * c - a.im * s, a.re * s + a.im * c};
}

// The same as a product of two: turned(x) = scale * lean(x), where lean(x) = x + i tan(angle) x takes two fused
// instructions for turned's four, and the scale goes into the additions after it (Linzer and Feig 1993). Where the
// cosine is 0, lean(x) = i x.
template <int kNum, int kDen, bool kInverse>
struct Turn {
    static constexpr bool kNone = kNum % (2 * kDen) == 0, kQuarter = 2 * kNum % kDen == 0 && 2 * kNum / kDen % 2 != 0;
    static constexpr double kCos = cos_pi(kNum, kDen), kSin = sin_pi(kInverse ? -kNum : kNum, kDen);
    static constexpr double scale = kNone ? 1.0 : kQuarter ? (kSin > 0 ? 1.0 : -1.0) : kCos;

    HYENA_DEVICE static Cx lean(Cx x) {
        if constexpr (kNone) return x;
        if constexpr (kQuarter) return {-x.im, x.re};
        constexpr float t = (float)(kSin / kCos);
        return {x.re - t * x.im, x.im + t * x.re};
    }
};

// a + k b and a - k b, one instruction for each number.
HYENA_DEVICE Cx plus(Cx a, float k, Cx b) { return {a.re + k * b.re, a.im + k * b.im}; }
HYENA_DEVICE Cx minus(Cx a, float k, Cx b) { return {a.re - k * b.re, a.im - k * b.im}; }

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

// Of a, and b, c, d turned (Goedecker 1997): 22 instructions.
template <bool kInverse, class B, class C, class D>
HYENA_DEVICE void butterfly4_turned(Cx& a, Cx& b, Cx& c, Cx& d) {
    constexpr float kc = (float)C::scale, kb = (float)B::scale, kd = (float)(D::scale / B::scale);
    const Cx lb = B::lean(b), lc = C::lean(c), ld = D::lean(d);
    const Cx s = plus(a, kc, lc), t = minus(a, kc, lc), u = plus(lb, kd, ld), v = rotated<kInverse>(minus(lb, kd, ld));
    a = plus(s, kb, u);
    b = plus(t, kb, v);
    c = minus(s, kb, u);
    d = minus(t, kb, v);
}

// A transform of R = 4 M points is M transforms over every M-th point, turns, and 4 transforms over M neighbours: time
// n = M q + m, frequency k = j + 4 l. The turn between them for (m, j), in units of pi / 2R; with a twist, that of time
// m is in it.
constexpr int turn_between(int m, int j, bool twist) { return m * ((twist ? 1 : 0) - 4 * j); }

// The second half: b[M j + m] to a[j + 4 l].
template <int R, bool kInverse, bool kTwist>
HYENA_DEVICE void over_neighbours(Cx* b, Cx* a) {
    constexpr int M = R / 4;
    unrolled<4>([&](auto row) {
        constexpr int j = decltype(row)::value;
        Cx* x = b + j * M;
        if constexpr (M == 4) {
            butterfly4_turned<kInverse, Turn<turn_between(1, j, kTwist), 2 * R, kInverse>,
                              Turn<turn_between(2, j, kTwist), 2 * R, kInverse>,
                              Turn<turn_between(3, j, kTwist), 2 * R, kInverse>>(x[0], x[1], x[2], x[3]);
        } else if constexpr (M == 2) {
            using T = Turn<turn_between(1, j, kTwist), 2 * R, kInverse>;
            const Cx lean = T::lean(x[1]);
            x[1] = minus(x[0], (float)T::scale, lean);
            x[0] = plus(x[0], (float)T::scale, lean);
        }
        unrolled<M>([&](auto l) { a[j + 4 * l] = x[l]; });
    });
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
        constexpr float c1 = (float)cos_pi(2, 5), c2 = (float)cos_pi(4, 5), s1 = (float)sin_pi(2, 5),
                        s2 = (float)sin_pi(4, 5);
        const Cx p = a[1] + a[4], q = a[2] + a[3], u = rotated<kInverse>(a[1] - a[4]),
                 v = rotated<kInverse>(a[2] - a[3]);
        const Cx m1 = {a[0].re + p.re * c1 + q.re * c2, a[0].im + p.im * c1 + q.im * c2};
        const Cx m2 = {a[0].re + p.re * c2 + q.re * c1, a[0].im + p.im * c2 + q.im * c1};
        const Cx e1 = {u.re * s1 + v.re * s2, u.im * s1 + v.im * s2},
                 e2 = {u.re * s2 - v.re * s1, u.im * s2 - v.im * s1};
        a[0] = a[0] + p + q;
        a[1] = m1 + e1;
        a[4] = m1 - e1;
        a[2] = m2 + e2;
        a[3] = m2 - e2;
    } else if constexpr (R == 8 || R == 16) {
        constexpr int M = R / 4;
        Cx b[R];
        unrolled<M>([&](auto m) {
            Cx x0 = a[m], x1 = a[M + m], x2 = a[2 * M + m], x3 = a[3 * M + m];
            butterfly4<kInverse>(x0, x1, x2, x3);
            b[m] = x0;
            b[M + m] = x1;
            b[2 * M + m] = x2;
            b[3 * M + m] = x3;
        });
        over_neighbours<R, kInverse, false>(b, a);
    } else {
        static_assert(R == 1, "radices are 2, 3, 4, 5, 8 and 16");
    }
}

// ---- the ends of a causal convolution: real numbers, twisted
// -------------------------------------------------------------
//
// Time n of R is twisted by exp(i pi n / 2R). Of a product's two parts, the imaginary one is not wanted.

// cos and sin of pi / 8 and pi / 4.
constexpr float kCos8 = (float)cos_pi(1, 8), kSin8 = (float)sin_pi(1, 8), kHalfRoot = (float)cos_pi(1, 4);

// The forward butterfly of real numbers, twisted.
template <int R>
HYENA_DEVICE void butterfly_of_reals(const float* x, Cx* a) {
    if constexpr (R == 4 || R == 8 || R == 16) {
        constexpr int M = R / 4;
        Cx b[R];
        unrolled<M>([&](auto m) {
            const float x0 = x[m], x1 = x[M + m], x2 = x[2 * M + m], x3 = x[3 * M + m];
            const float r = kHalfRoot * x2;
            const Cx s = {x0 + kHalfRoot * x2, r}, t = {x0 - kHalfRoot * x2, -r};
            const float c1 = kCos8 * x1, s1 = kSin8 * x1;
            const Cx u = {c1 + kSin8 * x3, s1 + kCos8 * x3}, v = {s1 - kCos8 * x3, kSin8 * x3 - c1};
            b[m] = s + u;
            b[M + m] = t + v;
            b[2 * M + m] = s - u;
            b[3 * M + m] = t - v;
        });
        over_neighbours<R, false, true>(b, a);
    } else {
        unrolled<R>([&](auto k) {
            constexpr float c = (float)cos_pi(decltype(k)::value, 2 * R), s = (float)sin_pi(decltype(k)::value, 2 * R);
            a[k] = {x[k] * c, x[k] * s};
        });
        butterfly<R, false>(a);
    }
}

// The real part of the inverse butterfly, untwisted. Leaves `a` changed.
template <int R>
HYENA_DEVICE void reals_of_butterfly(Cx* a, float* x) {
    if constexpr (R == 4 || R == 8 || R == 16) {
        // The steps of butterfly_of_reals from last to first.
        constexpr int M = R / 4;
        unrolled<4>([&](auto j) {
            Cx row[M];
            unrolled<M>([&](auto l) { row[l] = a[j + 4 * l]; });
            butterfly<M, true>(row);
            unrolled<M>([&](auto m) { a[j + 4 * m] = row[m]; });
        });
        unrolled<M>([&](auto index) {
            constexpr int m = decltype(index)::value;
            using T0 = Turn<turn_between(m, 0, true), 2 * R, true>;
            using T1 = Turn<turn_between(m, 1, true), 2 * R, true>;
            using T2 = Turn<turn_between(m, 2, true), 2 * R, true>;
            using T3 = Turn<turn_between(m, 3, true), 2 * R, true>;
            constexpr float k0 = (float)T0::scale, k1 = (float)T1::scale, k2 = (float)(T2::scale / T0::scale),
                            k3 = (float)(T3::scale / T1::scale);
            const Cx l0 = T0::lean(a[4 * m]), l1 = T1::lean(a[4 * m + 1]), l2 = T2::lean(a[4 * m + 2]),
                     l3 = T3::lean(a[4 * m + 3]);
            const Cx s = plus(l0, k2, l2), t = minus(l0, k2, l2), u = plus(l1, k3, l3),
                     v = rotated<true>(minus(l1, k3, l3));
            x[m] = k0 * s.re + k1 * u.re;
            constexpr float c0 = (float)(T0::scale * cos_pi(1, 8)), s0 = (float)(T0::scale * sin_pi(1, 8));
            constexpr float c1 = (float)(T1::scale * cos_pi(1, 8)), s1 = (float)(T1::scale * sin_pi(1, 8));
            x[M + m] = c0 * t.re + s0 * t.im + (c1 * v.re + s1 * v.im);
            constexpr float h0 = (float)(T0::scale * cos_pi(1, 4)), h1 = (float)(T1::scale * cos_pi(1, 4));
            x[2 * M + m] = h0 * s.re + h0 * s.im - (h1 * u.re + h1 * u.im);
            x[3 * M + m] = s0 * t.re + c0 * t.im - (s1 * v.re + c1 * v.im);
        });
    } else {
        butterfly<R, true>(a);
        unrolled<R>([&](auto k) {
            constexpr float c = (float)cos_pi(decltype(k)::value, 2 * R), s = (float)sin_pi(decltype(k)::value, 2 * R);
            x[k] = a[k].re * c + a[k].im * s;
        });
    }
}

}  // namespace hyena::cuda
