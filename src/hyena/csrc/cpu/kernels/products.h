// Products of spectra, of a convolution and of its gradient, row by row of the plan's matrix.
#pragma once

#include "../fft/right_angle.h"
#include "sections.h"
#include "sharing.h"

namespace hyena {
namespace {

template <class T>
struct Products {
    static constexpr int W = Simd<T>::W, S = 2 * W;
    const Passes<T>& passes;
    const SpectrumOf<T> spectrum;
    const Vec<T> skip;  // d / P: d times the input, as a constant added to the spectrum

    HYENA_INLINE Cx<T> filter(int64_t k) const {
        Cx<T> s = spectrum[k];
        s.re += skip;
        return s;
    }
    // For the next row of the spectrum.
    HYENA_INLINE void ask(int64_t k) const {
        if (passes.p1() > 1) spectrum.ask_for(k + passes.p2());
    }
    // The forward convolution of rows [r0, r1), in place.
    __attribute__((noinline)) void convolve(T* buffer, int64_t r0, int64_t r1) const {
        passes.rows_through(buffer, r0, r1, [&](int64_t k, Cx<T> x) HYENA_LAMBDA {
            ask(k);
            return times(x, filter(k));
        });
    }

    // The same, but the input's spectrum stays in `input` and the result goes to `output`.
    __attribute__((noinline)) void convolve_apart(T* input, T* output, int64_t r0, int64_t r1) const {
        for (int64_t r = r0; r < r1; ++r) {
            const T* x = to_spectrum(input, r);
            passes.rows_out(output, r, r + 1, [&](int64_t k) HYENA_LAMBDA {
                ask(k);
                return times(load_cx(x + (k - r * passes.p2()) * S), filter(k));
            });
        }
    }

    // The gradient. `input` holds the convolution's input (its spectrum already, unless `want_output`), `gradient` that
    // of its output. Adds to the filter's gradient, turns `gradient` into that of the input, and, if `want_output`,
    // `input` into the output.
    __attribute__((noinline)) void backward(T* input, T* gradient, bool want_output, const SpectrumOf<T>& dspectrum,
                                            int64_t r0, int64_t r1) const {
        for (int64_t r = r0; r < r1; ++r) {
            T* x = want_output ? to_spectrum(input, r) : input + r * passes.row_stride() * S;
            passes.rows_through(gradient, r, r + 1, [&](int64_t k, Cx<T> g) HYENA_LAMBDA {
                T* at = x + (k - r * passes.p2()) * S;
                ask(k);
                const Cx<T> s = filter(k), v = load_cx(at), ds = times_conj(g, v);
                dspectrum.add(k, ds);
                if (want_output) store_cx(at, times(v, s));
                return times_conj(g, s);
            });
            if (want_output)
                passes.rows_out(input, r, r + 1,
                                [&](int64_t k) HYENA_LAMBDA { return load_cx(x + (k - r * passes.p2()) * S); });
        }
    }

  private:
    T* to_spectrum(T* input, int64_t r) const {
        passes.rows_in(input, r, r + 1, [](int64_t, Cx<T> v) HYENA_LAMBDA { return v; });
        return input + r * passes.row_stride() * S;
    }
};

// Products::backward by a team. Channels that share a filter add to the same place, and are left to one worker.
template <class T>
void backward_rows(const Products<T>& products, T* input, T* gradient, bool want_output, const SpectrumOf<T>& dspectrum,
                   Team team) {
    if (!dspectrum.direct) team.parts = 1;
    team.over(products.passes.p1(),
              [&](int64_t r0, int64_t r1, int) { products.backward(input, gradient, want_output, dspectrum, r0, r1); });
}

// Adds every worker's sum of gradient times input to one group's part of the gradient of d.
template <class T>
void add_skips(const T* partial, int parts, T* dd, int lanes) {
    for (int part = 0; part < parts; ++part)
        for (int lane = 0; lane < lanes; ++lane) dd[lane] += partial[part * Simd<T>::W + lane];
}

}  // namespace
}  // namespace hyena
