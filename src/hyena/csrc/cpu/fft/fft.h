// Complex transforms of W channels at once, in place, any length 2^a 3^b 5^c.
//
// Forward: decimation in frequency (Gentleman and Sande 1966), natural order in, permuted order out. Inverse:
// decimation in time, permuted order in, natural order out, not scaled. A convolution multiplies two spectra in the
// same permuted order, so nothing is ever put back in order (Van Loan, Computational Frameworks for the FFT, section
// 1.9).
//
// A point is W real parts, then W imaginary parts: x[2 * W * i] and x[2 * W * i + W].
#pragma once

#include "../simd/simd.h"
#include "plan.h"

namespace hyena {
namespace {

template <class T>
struct Cx {
    Vec<T> re, im;
};

template <class T>
HYENA_INLINE Cx<T> load_cx(const T* p) {
    return {load(p), load(p + Simd<T>::W)};
}
template <class T>
HYENA_INLINE void store_cx(T* p, Cx<T> v) {
    store(p, v.re);
    store(p + Simd<T>::W, v.im);
}

template <class T>
HYENA_INLINE Cx<T> operator+(Cx<T> a, Cx<T> b) {
    return {a.re + b.re, a.im + b.im};
}
template <class T>
HYENA_INLINE Cx<T> operator-(Cx<T> a, Cx<T> b) {
    return {a.re - b.re, a.im - b.im};
}

// Times a scalar twiddle (forward), or its conjugate (inverse).
template <bool INV, class T>
HYENA_INLINE Cx<T> twiddled(Cx<T> a, T c, T s) {
    if (INV) return {a.re * c + a.im * s, a.im * c - a.re * s};
    return {a.re * c - a.im * s, a.im * c + a.re * s};
}

template <class T>
HYENA_INLINE Cx<T> times(Cx<T> a, Cx<T> b) {
    return {a.re * b.re - a.im * b.im, a.re * b.im + a.im * b.re};
}
// a times the conjugate of b.
template <class T>
HYENA_INLINE Cx<T> times_conj(Cx<T> a, Cx<T> b) {
    return {a.re * b.re + a.im * b.im, a.im * b.re - a.re * b.im};
}

// Times -i (forward) or i (inverse).
template <bool INV, class T>
HYENA_INLINE Cx<T> rotated(Cx<T> a) {
    if (INV) return {-a.im, a.re};
    return {a.im, -a.re};
}

template <bool INV, class T>
HYENA_INLINE void butterfly2(Cx<T>& a, Cx<T>& b) {
    Cx<T> t = a - b;
    a = a + b;
    b = t;
}

template <bool INV, class T>
HYENA_INLINE void butterfly4(Cx<T>& a, Cx<T>& b, Cx<T>& c, Cx<T>& d) {
    Cx<T> s = a + c, t = a - c, u = b + d, v = rotated<INV>(b - d);
    a = s + u;
    b = t + v;
    c = s - u;
    d = t - v;
}

// The transform of R points in natural order, in registers.
template <int R, bool INV, class T>
HYENA_INLINE void butterfly(Cx<T>* a) {
    if constexpr (R == 1) {
        (void)a;
    } else if constexpr (R == 2) {
        butterfly2<INV>(a[0], a[1]);
    } else if constexpr (R == 3) {
        const T half = T(0.5), h = T(0.86602540378443864676);  // cos and sin of 60 degrees
        Cx<T> s = a[1] + a[2], d = rotated<INV>(a[1] - a[2]);
        Cx<T> m = {a[0].re - s.re * half, a[0].im - s.im * half};
        Cx<T> e = {d.re * h, d.im * h};
        a[0] = a[0] + s;
        a[1] = m + e;
        a[2] = m - e;
    } else if constexpr (R == 4) {
        butterfly4<INV>(a[0], a[1], a[2], a[3]);
    } else if constexpr (R == 5) {
        const T c1 = T(0.30901699437494742410), c2 = T(-0.80901699437494742410);  // cosines of 72 and 144 degrees
        const T s1 = T(0.95105651629515357212), s2 = T(0.58778525229247312917);   // their sines
        Cx<T> p = a[1] + a[4], q = a[2] + a[3], u = rotated<INV>(a[1] - a[4]), v = rotated<INV>(a[2] - a[3]);
        Cx<T> m1 = {a[0].re + p.re * c1 + q.re * c2, a[0].im + p.im * c1 + q.im * c2};
        Cx<T> m2 = {a[0].re + p.re * c2 + q.re * c1, a[0].im + p.im * c2 + q.im * c1};
        Cx<T> e1 = {u.re * s1 + v.re * s2, u.im * s1 + v.im * s2};
        Cx<T> e2 = {u.re * s2 - v.re * s1, u.im * s2 - v.im * s1};
        a[0] = a[0] + p + q;
        a[1] = m1 + e1;
        a[4] = m1 - e1;
        a[2] = m2 + e2;
        a[3] = m2 - e2;
    } else {
        static_assert(R == 8, "radices are 2, 3, 4, 5 and 8");
        const T r = T(0.70710678118654752440);  // sqrt(1/2)
        HYENA_UNROLL
        for (int k = 0; k < 4; ++k) butterfly2<INV>(a[k], a[k + 4]);
        Cx<T> t = rotated<INV>(a[5]);
        a[5] = {(a[5].re + t.re) * r, (a[5].im + t.im) * r};
        a[6] = rotated<INV>(a[6]);
        t = rotated<INV>(a[7]);
        a[7] = {(t.re - a[7].re) * r, (t.im - a[7].im) * r};
        butterfly4<INV>(a[0], a[1], a[2], a[3]);  // even outputs 0, 2, 4, 6
        butterfly4<INV>(a[4], a[5], a[6], a[7]);  // odd outputs 1, 3, 5, 7
        Cx<T> e1 = a[1], e2 = a[2], e3 = a[3];
        a[1] = a[4];
        a[2] = e1;
        a[4] = e2;
        Cx<T> o1 = a[5], o3 = a[7];
        a[3] = o1;
        a[5] = a[6];
        a[6] = e3;
        a[7] = o3;
    }
}

// One stage over n points in blocks of m, with its twiddles; the last forward (first inverse) stage has m = R and none.
template <int R, bool INV, class T>
void stage(T* x, int n, int m, const T* tw) {
    constexpr int S = 2 * Simd<T>::W;
    const int q = m / R;
    for (int j = 0; j < q; ++j, tw += 2 * (R - 1)) {
        for (int at = j; at < n; at += m) {
            Cx<T> a[R];
            HYENA_UNROLL
            for (int k = 0; k < R; ++k) a[k] = load_cx(x + (int64_t)(at + k * q) * S);
            if (INV) {
                HYENA_UNROLL
                for (int k = 1; k < R; ++k) a[k] = twiddled<true>(a[k], tw[2 * k - 2], tw[2 * k - 1]);
            }
            butterfly<R, INV>(a);
            if (!INV) {
                HYENA_UNROLL
                for (int k = 1; k < R; ++k) a[k] = twiddled<false>(a[k], tw[2 * k - 2], tw[2 * k - 1]);
            }
            HYENA_UNROLL
            for (int k = 0; k < R; ++k) store_cx(x + (int64_t)(at + k * q) * S, a[k]);
        }
    }
}

// Calls f with a compile-time radix.
template <class F>
HYENA_INLINE void with_radix(int radix, F&& f) {
    switch (radix) {
        case 1: return f(std_int<1>{});
        case 2: return f(std_int<2>{});
        case 3: return f(std_int<3>{});
        case 4: return f(std_int<4>{});
        case 5: return f(std_int<5>{});
        default: return f(std_int<8>{});
    }
}

// The first stage, of radix 8, of `columns` transforms that stand `stride` points apart in x: each input is asked of
// `give(position, column)` where it is needed.
template <class T, class Give>
HYENA_INLINE void first_of_columns(const Factors<T>& f, T* x, int64_t columns, int64_t stride, Give&& give) {
    constexpr int R = 8, S = 2 * Simd<T>::W;
    const int q = f.n / R;
    const T* tw = f.twiddles[0];
    for (int j = 0; j < q; ++j, tw += 2 * (R - 1)) {
        for (int64_t c = 0; c < columns; ++c) {
            Cx<T> a[R];
            HYENA_UNROLL
            for (int k = 0; k < R; ++k) a[k] = give(j + k * q, c);
            butterfly<R, false>(a);
            T* to = x + (c * stride + j) * S;
            store_cx(to, a[0]);
            HYENA_UNROLL
            for (int k = 1; k < R; ++k)
                store_cx(to + (int64_t)k * q * S, twiddled<false>(a[k], tw[2 * k - 2], tw[2 * k - 1]));
        }
    }
}

// The last inverse stage likewise, each output handed to `take(position, column, value)`.
template <class T, class Take>
HYENA_INLINE void last_of_columns(const Factors<T>& f, const T* x, int64_t columns, int64_t stride, Take&& take) {
    constexpr int R = 8, S = 2 * Simd<T>::W;
    const int q = f.n / R;
    const T* tw = f.twiddles[0];
    for (int j = 0; j < q; ++j, tw += 2 * (R - 1)) {
        for (int64_t c = 0; c < columns; ++c) {
            const T* from = x + (c * stride + j) * S;
            Cx<T> a[R];
            a[0] = load_cx(from);
            HYENA_UNROLL
            for (int k = 1; k < R; ++k)
                a[k] = twiddled<true>(load_cx(from + (int64_t)k * q * S), tw[2 * k - 2], tw[2 * k - 1]);
            butterfly<R, true>(a);
            HYENA_UNROLL
            for (int k = 0; k < R; ++k) take(j + k * q, c, a[k]);
        }
    }
}

// All forward stages but the last; without the first one too, if that is done.
template <class T>
void forward_stages(const Factors<T>& f, T* x, bool first_done = false) {
    int m = first_done ? f.n / f.radix[0] : f.n;
    for (int s = first_done ? 1 : 0; s + 1 < f.stages; ++s) {
        with_radix(f.radix[s], [&](auto r) { stage<decltype(r)::value, false>(x, f.n, m, f.twiddles[s]); });
        m /= f.radix[s];
    }
}

// All inverse stages but the first; without the last one too, if that comes later.
template <class T>
void inverse_stages(const Factors<T>& f, T* x, bool last_later = false) {
    int m = f.stages > 0 ? f.radix[f.stages - 1] : 1;
    for (int s = f.stages - 2; s >= (last_later ? 1 : 0); --s) {
        m *= f.radix[s];
        with_radix(f.radix[s], [&](auto r) { stage<decltype(r)::value, true>(x, f.n, m, f.twiddles[s]); });
    }
}

// The last forward stage, each block of outputs handed to `take(position, points)` instead of being stored.
template <class T, class Take>
HYENA_INLINE void last_forward_stage(const Factors<T>& f, const T* x, Take&& take) {
    constexpr int S = 2 * Simd<T>::W;
    with_radix(f.stages > 0 ? f.radix[f.stages - 1] : 1, [&](auto r) {
        constexpr int R = decltype(r)::value;
        for (int at = 0; at < f.n; at += R) {
            Cx<T> a[R];
            HYENA_UNROLL
            for (int k = 0; k < R; ++k) a[k] = load_cx(x + (int64_t)(at + k) * S);
            butterfly<R, false>(a);
            take(at, a, r);
        }
    });
}

// The first inverse stage, each block of inputs asked of `give(position, points)` instead of being loaded.
template <class T, class Give>
HYENA_INLINE void first_inverse_stage(const Factors<T>& f, T* x, Give&& give) {
    constexpr int S = 2 * Simd<T>::W;
    with_radix(f.stages > 0 ? f.radix[f.stages - 1] : 1, [&](auto r) {
        constexpr int R = decltype(r)::value;
        for (int at = 0; at < f.n; at += R) {
            Cx<T> a[R];
            give(at, a, r);
            butterfly<R, true>(a);
            HYENA_UNROLL
            for (int k = 0; k < R; ++k) store_cx(x + (int64_t)(at + k) * S, a[k]);
        }
    });
}

}  // namespace
}  // namespace hyena
