// Transforms of a block's points, in place in shared memory, any length 2^a 3^b 5^c.
//
// Forward: decimation in frequency (Gentleman and Sande 1966), natural order in, permuted order out. Inverse: decimation in time,
// permuted order in, natural order out, not scaled. Products are taken in the permuted order, so nothing is ever put back in order,
// and because every butterfly writes where it read, a pass needs one barrier.
//
// The buffer holds `sets` transforms one after the other; each has `points` points and `lanes` neighbouring columns that are
// transformed alike (lanes > 1 for columns of a long transform). Point i of the buffer lies at pad(i): one place is left free after
// every 16, which spreads the strides of every pass over the banks of shared memory. Strides are multiples of 16, or one at the last
// pass, so that pad(i + k * stride) = pad(i) + k * pad(stride). Transforms that have others (of up to 64 points) are not padded.
#pragma once

#include "block.h"
#include "butterflies.h"

namespace hyena::cuda {

// For a butterfly's o: w = exp(-2 i pi o / m) and its powers, each at most one product away: w^(4 i + j) = high_i * low_j. In a first
// pass the high ones carry the twist of time o, exp(i pi o / 2m).
struct alignas(16) Roots {
    Cx low1, low2, low3, high1, high2, high3, high0, unused;
};

// Places that so many points may take.
HYENA_DEVICE int64_t buffer_places(uint32_t points) { return int64_t(points) + (points >> 4) + 1; }

struct Pass {
    int radix = 1;
    uint32_t stride = 1;  // between the inputs of a butterfly, in points of the buffer
    uint32_t step = 1;    // the same, in padded places
    FastDiv by_stride;
    const Roots* roots = nullptr;  // one for every o < stride / lanes
};

constexpr int kMaxPasses = 10;

struct Transform {
    uint32_t points = 1, sets = 1, lanes = 1, lane_shift = 0;
    int passes = 0;
    uint32_t pad_shift = 31;  // 4, or 31 for no padding
    Pass pass[kMaxPasses];

    HYENA_DEVICE uint32_t size() const { return points * sets * lanes; }
    HYENA_DEVICE uint32_t pad(uint32_t i) const { return i + (i >> pad_shift); }
};

// The powers 0 … R - 1 of w; in a first pass with a twist, times that of time o.
template <int R, bool kTwist>
HYENA_DEVICE void powers(const Roots& r, Cx* w) {
    const Cx low[4] = {{1.f, 0.f}, r.low1, r.low2, r.low3};
    const Cx high[4] = {kTwist ? r.high0 : Cx{1.f, 0.f}, r.high1, r.high2, r.high3};
    unrolled<R>([&](auto k) {
        constexpr int I = decltype(k)::value / 4, J = decltype(k)::value % 4;
        w[k] = J == 0 ? high[I] : I == 0 && !kTwist ? low[J] : low[J] * high[I];
    });
}

// Where a butterfly's input k lies: point `i` of the buffer, place `at`.
struct Place {
    uint32_t i, at;
};

struct Butterfly {
    uint32_t base, start;  // of input 0: point and place
    uint32_t stride, step, root;

    HYENA_DEVICE Butterfly(const Transform& t, const Pass& pass, int radix, uint32_t j) : stride(pass.stride), step(pass.step) {
        const uint32_t block = pass.by_stride(j), o = j - block * stride;
        base = block * stride * uint32_t(radix) + o;
        start = t.pad(base);
        root = o >> t.lane_shift;
    }
    HYENA_DEVICE Place operator[](int k) const { return {base + uint32_t(k) * stride, start + uint32_t(k) * step}; }
};

// What a first pass reads (and a last inverse pass writes): real or complex numbers with the twist, or complex ones without it.
enum class Ends { kRealTwisted, kTwisted, kPlain };

// fn(Int<R>, butterfly, roots of the pass) for every butterfly of pass `s`, shared by the threads of the block.
template <class Fn>
HYENA_DEVICE void each_butterfly(const Block& block, const Transform& t, int s, Fn&& fn) {
    const Pass& pass = t.pass[s];
    with_radix(pass.radix, [&](auto radix) {
        constexpr int R = decltype(radix)::value;
        const uint32_t count = t.size() / R;
        block.each([&](int thread) {
            for (uint32_t j = uint32_t(thread); j < count; j += uint32_t(block.threads))
                fn(radix, Butterfly(t, pass, R, j), pass.roots);
        });
    });
}

// Pass `s`, forward: Load(Place) -> Cx, Store(Place, Cx). The last pass has no twiddles (kRoots = false).
template <Ends kEnds = Ends::kPlain, bool kRoots = true, class Load, class Store>
HYENA_DEVICE void forward_pass(const Block& block, const Transform& t, int s, Load&& load, Store&& store) {
    each_butterfly(block, t, s, [&](auto radix, const Butterfly& b, const Roots* roots) {
        constexpr int R = decltype(radix)::value;
        constexpr bool kTwist = kEnds != Ends::kPlain;
        Cx a[R], w[R];
        unrolled<R>([&](auto k) {
            a[k] = load(b[k]);
            // The twist of time o + k * stride, without that of o, which goes into the powers.
            if constexpr (kEnds == Ends::kRealTwisted) {
                constexpr int K = decltype(k)::value;
                constexpr float c = (float)cos_pi(K, 2 * R), s = (float)sin_pi(K, 2 * R);
                a[k] = {a[k].re * c, a[k].re * s};
            }
            if constexpr (kEnds == Ends::kTwisted) a[k] = turned<decltype(k)::value, 2 * R>(a[k]);
        });
        butterfly<R, false>(a);
        if constexpr (kRoots) powers<R, kTwist>(roots[b.root], w);
        unrolled<R>([&](auto k) { store(b[k], kTwist || (kRoots && k > 0) ? a[k] * w[k] : a[k]); });
    });
}

// Its inverse (times R).
template <Ends kEnds = Ends::kPlain, bool kRoots = true, class Load, class Store>
HYENA_DEVICE void inverse_pass(const Block& block, const Transform& t, int s, Load&& load, Store&& store) {
    each_butterfly(block, t, s, [&](auto radix, const Butterfly& b, const Roots* roots) {
        constexpr int R = decltype(radix)::value;
        constexpr bool kTwist = kEnds != Ends::kPlain;
        Cx a[R], w[R];
        if constexpr (kRoots) powers<R, kTwist>(roots[b.root], w);
        unrolled<R>([&](auto k) {
            a[k] = load(b[k]);
            if (kTwist || (kRoots && k > 0)) a[k] = times_conj(a[k], w[k]);
        });
        butterfly<R, true>(a);
        unrolled<R>([&](auto k) {
            if constexpr (kEnds == Ends::kRealTwisted) {
                constexpr int K = decltype(k)::value;
                constexpr float c = (float)cos_pi(K, 2 * R), s = (float)sin_pi(K, 2 * R);
                store(b[k], Cx{a[k].re * c + a[k].im * s, 0.f});
            } else if constexpr (kEnds == Ends::kTwisted) {
                store(b[k], turned<decltype(k)::value, 2 * R, true>(a[k]));
            } else {
                store(b[k], a[k]);
            }
        });
    });
}

// The last forward pass, whose twiddles are all 1, handing each point of a set's spectrum to product(set)(index, value) -> value, and
// the first inverse pass of what that returns. `index` runs over [k][butterfly]: neighbouring threads have neighbouring indices. With
// kBack = false the transform ends here, and nothing is stored; with kForth = false it begins here, from product(set)(index, 0).
template <bool kForth = true, bool kBack = true, class Product>
HYENA_DEVICE void turning_pass(const Block& block, const Transform& t, Cx* buffer, Product&& product) {
    const Pass& pass = t.pass[t.passes - 1];
    with_radix(pass.radix, [&](auto radix) {
        constexpr int R = decltype(radix)::value;
        const uint32_t count = t.size() / R, each = t.points / R;
        block.each([&](int thread) {
            for (uint32_t j = uint32_t(thread); j < count; j += uint32_t(block.threads)) {
                const Butterfly b(t, pass, R, j);
                // Only rows (lanes = 1) turn; j / each is the set.
                const uint32_t set = t.sets == 1 ? 0 : j / each;
                const auto at = product(set);
                Cx a[R];
                if constexpr (kForth) {
                    unrolled<R>([&](auto k) { a[k] = buffer[b[k].at]; });
                    butterfly<R, false>(a);
                }
                unrolled<R>([&](auto k) { a[k] = at(k * each + (j - set * each), kForth ? a[k] : Cx{}); });
                if constexpr (kBack) {
                    butterfly<R, true>(a);
                    unrolled<R>([&](auto k) { buffer[b[k].at] = a[k]; });
                }
            }
        });
    });
}

// Loads and stores of the buffer itself.
struct InBuffer {
    Cx* x;
    HYENA_DEVICE Cx operator()(Place p) const { return x[p.at]; }
    HYENA_DEVICE void operator()(Place p, Cx v) const { x[p.at] = v; }
};
// Of real parts only: time t of a row, before its first pass and after its last.
struct RealInBuffer {
    Cx* x;
    HYENA_DEVICE Cx operator()(Place p) const { return {x[p.at].re, 0.f}; }
    HYENA_DEVICE void operator()(Place p, Cx v) const { x[p.at].re = v.re; }
};

// Passes between the first and the last.
HYENA_DEVICE void middle_forward(const Block& block, const Transform& t, Cx* buffer) {
    for (int s = 1; s < t.passes - 1; ++s) forward_pass(block, t, s, InBuffer{buffer}, InBuffer{buffer});
}
HYENA_DEVICE void middle_inverse(const Block& block, const Transform& t, Cx* buffer) {
    for (int s = t.passes - 2; s > 0; --s) inverse_pass(block, t, s, InBuffer{buffer}, InBuffer{buffer});
}

}  // namespace hyena::cuda
