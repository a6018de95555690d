// A filter's spectrum, and its gradient: hyena::filter_spectrum. Scaled by 1 / P, so that convolutions need no scale.
#pragma once

#include "../fft/right_angle.h"
#include "sharing.h"

namespace hyena {
namespace {

template <class T>
struct FilterSpectrum {
    static constexpr int W = Simd<T>::W, S = 2 * W;
    const SpectrumArgs& a;
    const HeldPlan<T> plan;
    const Passes<T> passes;
    const Blocks<T> blocks;

    explicit FilterSpectrum(const SpectrumArgs& args)
        : a(args), plan(args.spectra.points), passes{*plan}, blocks{args.spectra.channels, args.spectra.channels} {}

    struct WorkMemory {
        Memory<T> buffer, local;
        WorkMemory(const FilterSpectrum& f, int parts)
            : buffer(f.passes.buffer() * S), local(f.passes.scratch() * S * parts) {}
    };

    // Lag 0 of one group of channels of filter f.
    T* lag_zero(int64_t f, Group group) const {
        const int64_t taps = a.causal ? a.lags : 2 * a.lags - 1;
        return static_cast<T*>(a.taps) + (f * taps + (a.causal ? 0 : a.lags - 1)) * a.spectra.channels + group.first;
    }

    template <class Task>
    void each(Task&& task) const {
        share(
            a.pool, a.spectra.filters * blocks.count(), [&](int parts) { return WorkMemory(*this, parts); },
            [&](int64_t i, WorkMemory& memory, Team team) {
                const int64_t f = i / blocks.count(), block = i % blocks.count();
                const Group group = blocks.group(block, 0);
                task(lag_zero(f, group), group.lanes, SpectrumOf<T>(a.spectra, f, blocks, block, group), memory, team);
            });
    }

    void forward() const {
        each([&](const T* h, int lanes, const SpectrumOf<T>& spectrum, const WorkMemory& m, const Team& team) {
            const int64_t step = a.spectra.channels, points = a.spectra.points, lags = a.lags;
            T* buffer = m.buffer.get();
            Ahead ahead;
            ahead.add(h, step);
            ahead.length = lags;
            team.over(passes.p2(), [&](int64_t c0, int64_t c1, int part) {
                T* local = m.local.get() + part * passes.scratch() * S;
                // Lag t stands at time t; lag t - P, whose twist is -i times that of t, in the imaginary part.
                if (a.causal)
                    passes.columns_in(
                        buffer, c0, c1, local,
                        [&](int64_t t)
                            HYENA_LAMBDA { return t < lags ? load_lanes<T>(h + t * step, lanes) : zero<T>(); },
                        ahead);
                else
                    passes.columns_in(
                        buffer, c0, c1, local,
                        [&](int64_t t) HYENA_LAMBDA {
                            Cx<T> v{};
                            if (t < lags) v.re = load_lanes<T>(h + t * step, lanes);
                            if (points - t < lags) v.im = -load_lanes<T>(h + (t - points) * step, lanes);
                            return v;
                        },
                        ahead);
            });
            const T scale = T(1) / T(points);
            team.over(passes.p1(), [&](int64_t r0, int64_t r1, int) {
                passes.rows_in(buffer, r0, r1, [&](int64_t k, Cx<T> v) HYENA_LAMBDA {
                    spectrum.put(k, {v.re * scale, v.im * scale});
                    return v;
                });
            });
        });
    }

    void backward() const {
        each([&](T* dh, int lanes, const SpectrumOf<T>& dspectrum, const WorkMemory& m, const Team& team) {
            const int64_t step = a.spectra.channels, points = a.spectra.points, lags = a.lags;
            T* buffer = m.buffer.get();
            const T scale = T(1) / T(points);
            team.over(passes.p1(), [&](int64_t r0, int64_t r1, int) {
                passes.rows_out(buffer, r0, r1, [&](int64_t k) HYENA_LAMBDA { return dspectrum[k]; });
            });
            Ahead ahead;
            ahead.add(dh, step);
            ahead.length = lags;
            team.over(passes.p2(), [&](int64_t c0, int64_t c1, int part) {
                T* local = m.local.get() + part * passes.scratch() * S;
                passes.columns_out(
                    buffer, c0, c1, local,
                    [&](int64_t t, Cx<T> v) HYENA_LAMBDA {
                        if (t < lags) store_lanes<T>(dh + t * step, v.re * scale, lanes);
                        if (!a.causal && points - t < lags)
                            store_lanes<T>(dh + (t - points) * step, -v.im * scale, lanes);
                    },
                    ahead);
            });
        });
    }
};

}  // namespace
}  // namespace hyena
