// The gated long convolution of rows that fit one block, and whole mixing steps made of it.
//
// Right angle: time t is multiplied by exp(i pi t / 2P), P >= L. What wraps around in the circular convolution of P
// points is then multiplied by i against what does not, so after untwisting the real part is the convolution: no
// padding to 2L, no unpacking of real transforms. Spectra carry the factor 1 / P; gradients come from the same
// transforms and the conjugate spectrum.
#pragma once

#include "../fft/plan.h"
#include "lines.h"

namespace hyena::cuda {

// Of Convolve: how many blocks of kManyThreads a multiprocessor has registers for. To be measured, with kManyThreads.
#ifndef HYENA_BLOCKS_TOGETHER
#define HYENA_BLOCKS_TOGETHER 3
#endif

constexpr int kMaxGates = 9;  // of an operator of order 8 with a value filter

// Spectra of F filters of G channels, each with room for `room` points: (F, G, room).
struct Spectra {
    Cx* data = nullptr;
    int64_t groups = 1, room = 1;
    int64_t width = 1;  // channels that share a filter

    HYENA_DEVICE Cx* at(int64_t filter, int64_t channel) const {
        return data + (filter * groups + (width == 1 ? channel : int64_t(uint32_t(channel) / uint32_t(width)))) * room;
    }
};

// d as a constant added to a spectrum that carries `scale`, 1 / P.
HYENA_DEVICE float skip_of(const float* d, int64_t at, float scale) { return d == nullptr ? 0.f : d[at] * scale; }

// Times a filter's spectrum (or its conjugate), in a turning pass.
template <bool kConj, int R>
HYENA_DEVICE void times_filter(Int<R>, const Strided& filter, float skip, Cx* a) {
    unrolled<R>([&](auto k) {
        const Cx f = {filter[k].re + skip, filter[k].im};
        a[k] = kConj ? times_conj(a[k], f) : a[k] * f;
    });
}

// What a kernel is compiled for: whatever comes; or one transform and number of threads, one 2-byte dtype, rows without
// a mask, and short convolutions of kTaps taps or none: then addresses are constants, loops have known ends, and most
// branches are gone.
struct AnyKind {
    using OwnTransform = Transform;
    static constexpr int kThreads = 0;

    HYENA_DEVICE static const Operand& of(const Operand& o) { return o; }
    HYENA_DEVICE static const Operand& plain(const Operand& o) { return o; }
    HYENA_DEVICE static const Array& of(const Array& a) { return a; }
    HYENA_DEVICE static const Sequences& of(const Sequences& s) { return s; }
    HYENA_DEVICE static bool is_adjoint(bool adjoint) { return adjoint; }
};
template <class Fixed, int kOwnThreads, Storage kStorage, int kTaps>
struct FixedKind {
    using OwnTransform = Fixed;
    static constexpr int kThreads = kOwnThreads, taps = kTaps;
    static constexpr Storage storage = kStorage;

    HYENA_DEVICE static Array of(Array a) {
        a.storage = storage;
        return a;
    }
    HYENA_DEVICE static Operand of(Operand o) {
        o.array.storage = storage;
        o.taps = kTaps;
        return o;
    }
    // Of an operand that never has a short convolution.
    HYENA_DEVICE static Operand plain(Operand o) {
        o.array.storage = storage;
        o.taps = 0;
        return o;
    }
    HYENA_DEVICE static Sequences of(Sequences s) {
        s.mask = nullptr;
        return s;
    }
    HYENA_DEVICE static constexpr bool is_adjoint(bool) { return kTaps > 0; }
};
template <Storage kStorage, int kTaps>
using Kind512 = FixedKind<FixedTransform<4, 8, 4, 16>, 128, kStorage, kTaps>;
template <Storage kStorage, int kTaps>
using Kind1K = FixedKind<FixedTransform<2, 4, 16, 16>, 128, kStorage, kTaps>;
template <Storage kStorage, int kTaps>
using Kind2K = FixedKind<FixedTransform<1, 8, 16, 16>, 128, kStorage, kTaps>;
template <Storage kStorage, int kTaps>
using Kind4K = FixedKind<FixedTransform<1, 16, 16, 16>, 256, kStorage, kTaps>;
template <Storage kStorage, int kTaps>
using Kind8K = FixedKind<FixedTransform<1, 8, 4, 16, 16>, 256, kStorage, kTaps>;
template <Storage kStorage, int kTaps>
using Kind16K = FixedKind<FixedTransform<1, 4, 16, 16, 16>, 512, kStorage, kTaps>;

template <class Kind>
HYENA_DEVICE Block block_of(Block block) {
    if constexpr (Kind::kThreads > 0) block.threads = Kind::kThreads;
    return block;
}

// How the threads of a block share the positions of its sets.
template <class AnyTransform>
struct Chunks {
    const AnyTransform& transform;
    int sets, per_set, points;

    HYENA_DEVICE Chunks(const Block& block, const AnyTransform& t)
        : transform(t),
          sets(int(t.sets)),
          per_set(sets == 1 ? block.threads : block.threads / sets),
          points(int(t.points)) {}

    // begin(set)(t) for each of the thread's chunks, which are all of one set.
    template <class Begin>
    HYENA_DEVICE void each(int thread, Begin&& begin) const {
        const int set = sets == 1 ? 0 : thread / per_set;
        if (set >= sets) return;
        const auto chunk = begin(set);
        for (int t = (thread - set * per_set) * kChunk; t < points; t += per_set * kChunk) chunk(t);
    }

    // A chunk's real parts, from the buffer and into it. A chunk of a padded buffer lies between two gaps.
    HYENA_DEVICE void get(const Cx* buffer, int set, int t, float* x) const {
        const Cx* from = buffer + transform.pad(uint32_t(set * points + t));
        if (t + kChunk <= points) {
            HYENA_UNROLL
            for (int e = 0; e < kChunk; ++e) x[e] = from[e].re;
        } else {
            HYENA_UNROLL
            for (int e = 0; e < kChunk; ++e) x[e] = t + e < points ? from[e].re : 0.f;
        }
    }
    HYENA_DEVICE void put(Cx* buffer, int set, int t, const float* x) const {
        Cx* to = buffer + transform.pad(uint32_t(set * points + t));
        if (t + kChunk <= points) {
            HYENA_UNROLL
            for (int e = 0; e < kChunk; ++e) to[e].re = x[e];
        } else {
            HYENA_UNROLL
            for (int e = 0; e < kChunk; ++e)
                if (t + e < points) to[e].re = x[e];
        }
    }
    // With the first few of the chunk after it, zeros behind the last.
    HYENA_DEVICE void get_ahead(const Cx* buffer, int set, int t, float* x) const {
        get(buffer, set, t, x);
        const Cx* from = buffer + transform.pad(uint32_t(set * points + t + kChunk));
        HYENA_UNROLL
        for (int e = 0; e < kHalo; ++e) x[kChunk + e] = t + kChunk + e < points ? from[e].re : 0.f;
    }
};

}  // namespace hyena::cuda
