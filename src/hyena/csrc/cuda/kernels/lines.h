// Rows of operands read and rows written, eight positions at a time, with the short convolution, the mask, and the
// adjoint.
//
// z_bias: see docs/maths.md, section 1. Positions outside the row or masked read -z_bias; the short convolution's bias
// absorbs the rest; the taps' gradients are corrected in TapGradients.
#pragma once

#include "sequences.h"

namespace hyena::cuda {

// N values that one access moves, as far as accesses go: 16 bytes.
template <class IO, int N>
struct alignas(N * sizeof(IO) < 16 ? N * sizeof(IO) : 16) Pack {
    uint32_t words[N * sizeof(IO) / 4];

    HYENA_DEVICE void get(float* x) const {
        unrolled<int(N * sizeof(IO) / 4)>([&](auto i) {
            if constexpr (sizeof(IO) == 4)
                x[i] = bits_as<float>(words[i]);
            else
                unpack<IO>(words[i], x + 2 * i);
        });
    }
    HYENA_DEVICE void set(const float* x) {
        unrolled<int(N * sizeof(IO) / 4)>([&](auto i) {
            if constexpr (sizeof(IO) == 4)
                words[i] = bits_as<uint32_t>(x[i]);
            else
                words[i] = packed<IO>(x[2 * i], x[2 * i + 1]);
        });
    }
};

// The lowest bits of a word's four bytes, which are 0 or 1 each.
HYENA_DEVICE uint32_t packed_flags(uint32_t bytes) { return (bytes & 0x01010101u) * 0x10204080u >> 28; }

constexpr uint32_t kAllKept = 0xffff;  // of Line::kept

// x[e] where bit kFirst + e is set, `otherwise` elsewhere.
template <int kFirst, int N>
HYENA_DEVICE void only(uint32_t kept, float otherwise, float* x) {
    constexpr uint32_t kBits = ((1u << N) - 1) << kFirst;
    if ((kept & kBits) == kBits) return;
    HYENA_UNROLL
    for (int e = 0; e < N; ++e)
        if ((kept >> (kFirst + e) & 1) == 0) x[e] = otherwise;
}

// A row and channel of an operand.
struct Line {
    const char* data;
    const uint8_t* keep;  // mask of the row, or null; applied with a short convolution, or to what is `masked`
    const float* last;    // tap of the position itself
    int32_t length, taps;
    Storage storage;
    bool given;
    bool aligned;         // so that chunks can be read in a few accesses
    float bias;           // with the short convolution of z_bias
    float outside = 0.f;  // stands at positions that are not in the row or masked
    float w[kTapGroup];   // the first group of taps: weight of the position j before

    HYENA_DEVICE Line(const Operand& o, const Sequences& s, const Row& row, uint32_t channel)
        : data(o.array.at(row, channel)),
          keep(s.mask != nullptr && (o.taps > 0 || o.masked) ? s.mask + row.batch * s.length + row.start : nullptr),
          last(o.weight + (channel + 1) * uint32_t(o.taps) - 1),
          length(row.length),
          taps(o.taps),
          storage(o.array.storage),
          given(o.given()),
          aligned(reinterpret_cast<uintptr_t>(data) % 16 == 0),
          bias(o.taps > 0 && o.bias != nullptr ? o.bias[channel] : 0.f) {
        HYENA_UNROLL
        for (int j = 0; j < kTapGroup; ++j) w[j] = tap(j);
        if (o.taps == 0 || o.z_bias == nullptr) return;
        float sum = (w[0] + w[1]) + (w[2] + w[3]);
        for (int j = kTapGroup; j < taps; ++j) sum += tap(j);
        outside = -o.z_bias[channel];
        bias -= outside * sum;
    }

    HYENA_DEVICE int groups() const { return (taps + kTapGroup - 1) / kTapGroup; }
    // Weight of the position j before.
    HYENA_DEVICE float tap(int j) const { return j < taps ? last[-j] : 0.f; }

    HYENA_DEVICE bool keeps(int t) const { return t >= 0 && t < length && (keep == nullptr || keep[t] != 0); }

    // Whether positions t … t + n - 1 are all in the row and kept.
    HYENA_DEVICE bool inside(int t, int n) const { return keep == nullptr && t >= 0 && t + n <= length; }

    // Whether a Span can be read at t >= 0: what it has after the chunk must be all in the row, or all behind its end.
    template <bool kAfter>
    HYENA_DEVICE bool quick(int t) const {
        const int more = length - t - kChunk;
        return aligned && (kAfter ? more >= 4 || more == 0 : more >= 0);
    }

    // Which of positions t - 4 … t + 11 are in the row and kept, as bits; t is a multiple of kChunk.
    HYENA_DEVICE uint32_t kept(int t) const {
        uint32_t bits = kAllKept;
        if (t == 0) bits &= kAllKept << 4;
        if (t + 12 > length) bits &= t - 4 < length ? (1u << (length - t + 4)) - 1 : 0u;
        if (keep == nullptr) return bits;
        if (bits == kAllKept && reinterpret_cast<uintptr_t>(keep) % 8 == 0) {
            const auto* words = reinterpret_cast<const uint32_t*>(keep + t);
            return packed_flags(words[-1]) | packed_flags(words[0]) << 4 | packed_flags(words[1]) << 8 |
                   packed_flags(words[2]) << 12;
        }
        for (int i = 0; i < 16; ++i)
            if ((bits >> i & 1) != 0 && keep[t - 4 + i] == 0) bits &= ~(1u << i);
        return bits;
    }

    // Values at t … t + N - 1.
    template <int N>
    HYENA_DEVICE void raw(int t, float* x) const {
        with_storage(storage, [&](auto tag) {
            const auto* p = reinterpret_cast<const decltype(tag)*>(data) + t;
            HYENA_UNROLL
            for (int e = 0; e < N; ++e) x[e] = t + e >= 0 && t + e < length ? to_float(p[e]) : outside;
        });
        if (keep == nullptr) return;
        HYENA_UNROLL
        for (int e = 0; e < N; ++e)
            if (!keeps(t + e)) x[e] = outside;
    }
    // Zeros where positions t … t + N - 1 are outside the row or masked.
    template <int N>
    HYENA_DEVICE void drop(int t, float* x) const {
        HYENA_UNROLL
        for (int e = 0; e < N; ++e)
            if (!keeps(t + e)) x[e] = 0.f;
    }

    // The short convolution at t … t + kChunk + kAfter - 1 of the window at t, for the first group of taps.
    template <int kAfter>
    HYENA_DEVICE void convolve(uint32_t kept, const float* x, float* out) const {
        HYENA_UNROLL
        for (int e = 0; e < kChunk + kAfter; ++e) out[e] = bias;
        HYENA_UNROLL
        for (int j = 0; j < kTapGroup; ++j)
            if (j < taps) {  // a weight of zero would spread what is not finite
                HYENA_UNROLL
                for (int e = 0; e < kChunk + kAfter; ++e) out[e] += w[j] * x[kHalo + e - j];
            }
        only<4, kChunk + kAfter>(kept, 0.f, out);
    }

    // The operand at t … t + kChunk - 1 out of the window at t, any number of taps.
    HYENA_DEVICE void finish(int t, uint32_t kept, const float* window_at_t, float* out) const;
};

// Positions t - 4 … t + kChunk + 3 of a line, or some of them, as they lie. Reading and converting are apart, so that
// several can be under way at once.
template <class IO, bool kAfter>
struct Span {
    Pack<IO, 4> before, after;
    Pack<IO, kChunk> own;

    HYENA_DEVICE Span(const Line& line, int t) : before{}, after{} {
        const IO* p = reinterpret_cast<const IO*>(line.data) + t;
        if (line.taps > 0 && t > 0) before = *reinterpret_cast<const Pack<IO, 4>*>(p - 4);
        own = *reinterpret_cast<const Pack<IO, kChunk>*>(p);
        if (kAfter && t + kChunk < line.length) after = *reinterpret_cast<const Pack<IO, 4>*>(p + kChunk);
    }
    HYENA_DEVICE void get(float* x) const {
        float more[4];
        before.get(more);
        HYENA_UNROLL
        for (int e = 0; e < kHalo; ++e) x[e] = more[4 - kHalo + e];
        own.get(x + kHalo);
        if constexpr (kAfter) {
            after.get(more);
            HYENA_UNROLL
            for (int e = 0; e < kHalo; ++e) x[kHalo + kChunk + e] = more[e];
        }
    }
};

// Values at t - kHalo … t + kChunk - 1, or kHalo more. Those before t are not read where there is no short convolution.
template <bool kAfter = false>
HYENA_DEVICE void window(const Line& line, int t, uint32_t kept, float* x) {
    constexpr int kCount = kHalo + kChunk + (kAfter ? kHalo : 0);
    if (line.quick<kAfter>(t)) {
        with_storage(line.storage, [&](auto tag) { Span<decltype(tag), kAfter>(line, t).get(x); });
        only<4 - kHalo, kCount>(kept, line.outside, x);
    } else {
        line.raw<kCount>(t - kHalo, x);
    }
}

// The same of two lines, of which the second may be missing, read together.
template <bool kAfter = false>
HYENA_DEVICE void windows(const Line& a, const Line& b, int t, uint32_t kept_a, uint32_t kept_b, float* xa, float* xb) {
    constexpr int kCount = kHalo + kChunk + (kAfter ? kHalo : 0);
    if (b.given && a.storage == b.storage && a.quick<kAfter>(t) && b.quick<kAfter>(t)) {
        with_storage(a.storage, [&](auto tag) {
            const Span<decltype(tag), kAfter> sa(a, t), sb(b, t);
            sa.get(xa);
            sb.get(xb);
        });
        only<4 - kHalo, kCount>(kept_a, a.outside, xa);
        only<4 - kHalo, kCount>(kept_b, b.outside, xb);
        return;
    }
    window<kAfter>(a, t, kept_a, xa);
    if (b.given) window<kAfter>(b, t, kept_b, xb);
}

// Values at t … t + kChunk - 1 of a line without a short convolution, as they lie.
HYENA_DEVICE void chunk(const Line& line, int t, float* x) {
    if (line.quick<false>(t))
        with_storage(line.storage, [&](auto tag) {
            const auto* p = reinterpret_cast<const decltype(tag)*>(line.data) + t;
            reinterpret_cast<const Pack<decltype(tag), kChunk>*>(p)->get(x);
        });
    else
        line.raw<kChunk>(t, x);
}
// With the kHalo values behind them.
HYENA_DEVICE void ahead(const Line& line, int t, float* x) {
    if (line.quick<true>(t)) {
        with_storage(line.storage, [&](auto tag) {
            float w[kHalo + kChunk + kHalo];
            Span<decltype(tag), true>(line, t).get(w);
            HYENA_UNROLL
            for (int e = 0; e < kChunk + kHalo; ++e) x[e] = w[kHalo + e];
        });
    } else {
        line.raw<kChunk + kHalo>(t, x);
    }
}

HYENA_DEVICE void Line::finish(int t, uint32_t kept, const float* window_at_t, float* out) const {
    if (taps == 0) {
        HYENA_UNROLL
        for (int e = 0; e < kChunk; ++e) out[e] = window_at_t[kHalo + e];
        return;
    }
    convolve<0>(kept, window_at_t, out);
    for (int g = 1; g < groups(); ++g) {
        float x[kHalo + kChunk];
        raw<kHalo + kChunk>(t - g * kTapGroup - kHalo, x);
        HYENA_UNROLL
        for (int e = 0; e < kChunk; ++e) {
            float sum = 0.f;
            HYENA_UNROLL
            for (int j = 0; j < kTapGroup; ++j)
                if (g * kTapGroup + j < taps) sum += tap(g * kTapGroup + j) * x[kHalo + e - j];
            if ((kept >> (4 + e) & 1) != 0) out[e] += sum;
        }
    }
}

// a * b at t … t + kChunk - 1, where b may be missing.
HYENA_DEVICE void product(const Line& a, const Line& b, int t, float* out) {
    float xa[kHalo + kChunk], xb[kHalo + kChunk], g[kChunk];
    const uint32_t kept_a = a.kept(t), kept_b = b.kept(t);
    windows(a, b, t, kept_a, kept_b, xa, xb);
    a.finish(t, kept_a, xa, out);
    if (!b.given) return;
    b.finish(t, kept_b, xb, g);
    HYENA_UNROLL
    for (int e = 0; e < kChunk; ++e) out[e] *= g[e];
}

// x *= the operand, if there is one.
HYENA_DEVICE void gate(const Line& line, int t, float* x) {
    if (!line.given) return;
    float w[kHalo + kChunk], g[kChunk];
    const uint32_t kept = line.kept(t);
    window(line, t, kept, w);
    line.finish(t, kept, w, g);
    HYENA_UNROLL
    for (int e = 0; e < kChunk; ++e) x[e] *= g[e];
}

// A row and channel that is written.
struct Sink {
    char* data;
    Storage storage;
    int32_t length;
    bool aligned;

    HYENA_DEVICE Sink(const Array& array, const Row& row, uint32_t channel)
        : data(array.at(row, channel)),
          storage(array.storage),
          length(row.length),
          aligned(reinterpret_cast<uintptr_t>(data) % 16 == 0) {}

    // Positions t … t + kChunk - 1, as far as the row goes.
    HYENA_DEVICE void put(int t, const float* x) const {
        with_storage(storage, [&](auto tag) {
            using IO = decltype(tag);
            IO* p = reinterpret_cast<IO*>(data) + t;
            if (aligned && t + kChunk <= length) {
                Pack<IO, kChunk> pack;
                pack.set(x);
                *reinterpret_cast<Pack<IO, kChunk>*>(p) = pack;  // whole: word by word it would be as many accesses
            } else {
                HYENA_UNROLL
                for (int e = 0; e < kChunk; ++e)
                    if (t + e < length) p[e] = from_float<IO>(x[e]);
            }
        });
    }
};

HYENA_DEVICE float sum_of(const float* x) {
    float sum = 0.f;
    HYENA_UNROLL
    for (int e = 0; e < kChunk; ++e) sum += x[e];
    return sum;
}

// The gradient of one part of z, through the adjoint of its short convolution (up to four taps): `g` is that of the
// part at t … t + kChunk + kHalo - 1, `x` the window of z. Adds to the sums of the taps' gradients and the bias's, and,
// if there are less than four taps, to that of z_bias in the place of the fourth.
HYENA_DEVICE void put_adjoint(const Sink& dz, const Line& line, int t, uint32_t kept, float* g, const float* x,
                              float* sums) {
    float dx[kChunk];
    only<4, kChunk + kHalo>(kept, 0.f, g);
    HYENA_UNROLL
    for (int e = 0; e < kChunk; ++e) {
        dx[e] = 0.f;
        HYENA_UNROLL
        for (int j = 0; j < kTapGroup; ++j)
            if (j < line.taps) {
                dx[e] += line.w[j] * g[e + j];
                sums[j] += g[e] * x[kHalo + e - j];
            }
        sums[kTapGroup] += g[e];
    }
    only<4, kChunk>(kept, 0.f, dx);
    if (line.taps < kTapGroup) sums[kTapGroup - 1] += sum_of(dx);
    dz.put(t, dx);
}

}  // namespace hyena::cuda
