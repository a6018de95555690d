// Transforms of a block's points, in place in shared memory, any length 2^a 3^b 5^c.
//
// The polynomial with the points as coefficients is divided by z^P - rho, rho = i with a twist and 1 without: a pass of
// radix R takes what is left modulo z^m - rho, m = P at first, to R remainders modulo z^(m/R) - rho', rho' the R-th
// roots of rho, which are the transform of R points m/R apart, each multiplied by a power of one of those roots. So
// twiddles depend on the block of m points alone (Bernstein 2001, "Multidigit multiplication for mathematicians"): the
// first pass has constants, the others few distinct ones. The order of the roots is that of decimation in frequency,
// natural order in, permuted order out; the inverse undoes one pass after the other, not scaled. Products are taken in
// the permuted order, so nothing is ever put back in order, and because every butterfly writes where it read, a pass
// needs one barrier.
//
// The buffer holds `sets` transforms one after the other; each has `points` points and `lanes` neighbouring columns
// that are transformed alike (lanes > 1 for columns of a long transform). Point i of the buffer lies at pad(i): one
// place is left free after every 16, which spreads the strides of every pass over the banks of shared memory. Strides
// are multiples of 16, or one at the last pass, so that pad(i + k * stride) = pad(i) + k * pad(stride). Transforms that
// have others (of up to 64 points) are not padded.
#pragma once

#include "transform.h"

namespace hyena::cuda {

// The powers 1 … R - 1 of the root of a block of the last pass, each at most one product away from a table's: w, w^2,
// w^3, w^4, and w^8, w^12. A table of all of them would be read from beyond the first cache level.
template <int R, class AnyPass>
HYENA_DEVICE void powers(const AnyPass& pass, uint32_t block, Cx* w) {
    const RootPair* pairs = static_cast<const RootPair*>(pass.roots) + block;
    if constexpr (R > 1) {
        const RootPair low = pairs[0];
        w[1] = low.first;
        if constexpr (R > 2) w[2] = low.second;
    }
    if constexpr (R > 3) {
        const RootPair next = pairs[pass.blocks];
        w[3] = next.first;
        if constexpr (R > 4) w[4] = next.second;
    }
    if constexpr (R == 16) {
        const RootPair high = pairs[2 * pass.blocks];
        w[8] = high.first;
        w[12] = high.second;
    }
    unrolled<R>([&](auto k) {
        constexpr int high = decltype(k)::value / 4 * 4, low = decltype(k)::value % 4;
        if constexpr (high > 0 && low > 0) w[k] = w[high] * w[low];
    });
}

// The powers 0 … R - 1 of the root of a block of another pass, from a table of all of them.
template <int R, class AnyPass>
HYENA_DEVICE void all_powers(const AnyPass& pass, uint32_t block, Cx* w) {
    const Cx* from = static_cast<const Cx*>(pass.roots) + block * uint32_t(R);
    if constexpr (R % 2 == 0) {
        unrolled<R / 2>([&](auto i) {
            const RootPair pair = reinterpret_cast<const RootPair*>(from)[i];
            w[2 * i] = pair.first;
            w[2 * i + 1] = pair.second;
        });
    } else {
        unrolled<R>([&](auto k) { w[k] = from[k]; });
    }
}

// The points of a spectrum that a butterfly of the last pass makes.
struct Strided {
    Cx* at;
    uint32_t stride;

    HYENA_DEVICE Strided(Cx* spectrum, uint32_t index, uint32_t stride_)
        : at(opaque(spectrum + index)), stride(stride_) {}
    HYENA_DEVICE Cx& operator[](int k) const { return at[uint64_t(stride) * uint32_t(k)]; }
};

// sums[k] += a[k] * conj(kept[k]), all in device memory. The compiler may not move a load before a store that might be
// to the same place, so those of four points come before the stores of the four: each wait for memory is for eight
// loads.
template <int R>
HYENA_DEVICE void add_products(const Strided& sums, const Cx* a, const Strided& kept) {
    constexpr int kTogether = R % 4 == 0 ? 4 : R;
    unrolled<R / kTogether>([&](auto group) {
        constexpr int first = decltype(group)::value * kTogether;
        Cx sum[kTogether], other[kTogether];
        unrolled<kTogether>([&](auto k) {
            sum[k] = sums[first + k];
            other[k] = kept[first + k];
        });
        unrolled<kTogether>([&](auto k) { sums[first + k] = sum[k] + times_conj(a[first + k], other[k]); });
    });
}

// Where a butterfly's input k lies: point `i` of the buffer, place `at`.
struct Place {
    uint32_t i, at;
};

// Of a pass whose stride is kStride; 0 = known only when the kernel runs.
template <uint32_t kStride>
struct Butterfly {
    uint32_t i, start;  // of input 0: point and place
    uint32_t stride, step;
    uint32_t block;  // of its set

    template <class AnyTransform, class AnyPass>
    HYENA_DEVICE Butterfly(const AnyTransform& t, const AnyPass& pass, uint32_t j)
        : stride(kStride), step(kStride + kStride / 16) {
        if constexpr (kStride == 0) {
            stride = pass.stride;
            step = pass.step;
            block = pass.by_stride(j);
        } else {
            block = j / kStride;
        }
        i = block * stride * uint32_t(pass.radix - 1) + j;
        start = t.pad(i);
        if (t.sets > 1) block -= pass.by_blocks(block) * pass.blocks;
    }
    HYENA_DEVICE Place operator[](int k) const { return {i + uint32_t(k) * stride, start + uint32_t(k) * step}; }
};

// What a first pass reads (and a last inverse pass writes): real or complex numbers with the twist, or complex ones
// without it.
enum class Ends { kRealTwisted, kTwisted, kPlain };

// fn(Int<R>, pass, butterfly) for every butterfly of pass `s`, shared by the threads of the block.
template <bool kMiddle = false, class AnyTransform, class S, class Fn>
HYENA_DEVICE void each_butterfly(const Block& block, const AnyTransform& t, S s, Fn&& fn) {
    with_pass(t, s, [&](auto radix, const auto& pass) {
        const uint32_t count = t.size() / uint32_t(radix);
        const auto run = [&](auto stride) {
            block.each([&](int thread) {
                for (uint32_t j = uint32_t(thread); j < count; j += uint32_t(block.threads))
                    fn(radix, pass, Butterfly<decltype(stride)::value>(t, pass, j));
            });
        };
        if constexpr (!std::is_same_v<AnyTransform, Transform>) {
            run(Int<int(std::decay_t<decltype(pass)>::stride)>{});
        } else {
            // The middle pass of most transforms is one whose addresses can be constants.
            if constexpr (kMiddle && decltype(radix)::value == 16) {
                if (pass.stride == 16 && t.pad_shift == 4) {
                    run(Int<16>{});
                    return;
                }
            }
            run(Int<0>{});
        }
    });
}

// The first pass: Load(Place) -> Cx, or float for real numbers; Store(Place, Cx).
template <Ends kEnds, class AnyTransform, class Load, class Store>
HYENA_DEVICE void first_pass(const Block& block, const AnyTransform& t, Load&& load, Store&& store) {
    each_butterfly(block, t, Int<0>{}, [&](auto radix, const auto&, const auto& b) {
        constexpr int R = decltype(radix)::value;
        Cx a[R];
        if constexpr (kEnds == Ends::kRealTwisted) {
            float x[R];
            unrolled<R>([&](auto k) { x[k] = load(b[k]); });
            butterfly_of_reals<R>(x, a);
        } else {
            unrolled<R>([&](auto k) {
                a[k] = load(b[k]);
                if constexpr (kEnds == Ends::kTwisted) a[k] = turned<decltype(k)::value, 2 * R>(a[k]);
            });
            butterfly<R, false>(a);
        }
        unrolled<R>([&](auto k) { store(b[k], a[k]); });
    });
}

// Its inverse (times R): Load(Place) -> Cx; Store(Place, Cx), or float.
template <Ends kEnds, class AnyTransform, class Load, class Store>
HYENA_DEVICE void first_pass_inverse(const Block& block, const AnyTransform& t, Load&& load, Store&& store) {
    each_butterfly(block, t, Int<0>{}, [&](auto radix, const auto&, const auto& b) {
        constexpr int R = decltype(radix)::value;
        Cx a[R];
        unrolled<R>([&](auto k) { a[k] = load(b[k]); });
        if constexpr (kEnds == Ends::kRealTwisted) {
            float x[R];
            reals_of_butterfly<R>(a, x);
            unrolled<R>([&](auto k) { store(b[k], x[k]); });
        } else {
            butterfly<R, true>(a);
            unrolled<R>([&](auto k) {
                if constexpr (kEnds == Ends::kTwisted) a[k] = turned<decltype(k)::value, 2 * R, true>(a[k]);
                store(b[k], a[k]);
            });
        }
    });
}

// Passes between the first and the last, forward or back.
template <bool kInverse, class AnyTransform, class S>
HYENA_DEVICE void middle_pass(const Block& block, const AnyTransform& t, S s, Cx* buffer) {
    each_butterfly<true>(block, t, s, [&](auto radix, const auto& pass, const auto& b) {
        constexpr int R = decltype(radix)::value;
        Cx a[R], w[R];
        all_powers<R>(pass, b.block, w);
        unrolled<R>([&](auto k) {
            a[k] = buffer[b[k].at];
            if constexpr (!kInverse && k > 0) a[k] = a[k] * w[k];
        });
        butterfly<R, kInverse>(a);
        unrolled<R>([&](auto k) {
            if constexpr (kInverse && k > 0) a[k] = times_conj(a[k], w[k]);
            buffer[b[k].at] = a[k];
        });
    });
}
template <class AnyTransform>
HYENA_DEVICE void middle_forward(const Block& block, const AnyTransform& t, Cx* buffer) {
    each_middle<false>(t, [&](auto s) { middle_pass<false>(block, t, s, buffer); });
}
template <class AnyTransform>
HYENA_DEVICE void middle_inverse(const Block& block, const AnyTransform& t, Cx* buffer) {
    each_middle<true>(t, [&](auto s) { middle_pass<true>(block, t, s, buffer); });
}

// The last pass from the buffer to Store(Place, Cx), and its inverse from Load(Place) -> Cx.
template <class Store>
HYENA_DEVICE void last_pass(const Block& block, const Transform& t, const Cx* buffer, Store&& store) {
    each_butterfly(block, t, last_of(t), [&](auto radix, const auto& pass, const auto& b) {
        constexpr int R = decltype(radix)::value;
        Cx a[R], w[R];
        powers<R>(pass, b.block, w);
        unrolled<R>([&](auto k) {
            a[k] = buffer[b[k].at];
            if constexpr (k > 0) a[k] = a[k] * w[k];
        });
        butterfly<R, false>(a);
        unrolled<R>([&](auto k) { store(b[k], a[k]); });
    });
}
template <class Load>
HYENA_DEVICE void last_pass_inverse(const Block& block, const Transform& t, Cx* buffer, Load&& load) {
    each_butterfly(block, t, last_of(t), [&](auto radix, const auto& pass, const auto& b) {
        constexpr int R = decltype(radix)::value;
        Cx a[R], w[R];
        powers<R>(pass, b.block, w);
        unrolled<R>([&](auto k) { a[k] = load(b[k]); });
        butterfly<R, true>(a);
        unrolled<R>([&](auto k) { buffer[b[k].at] = k > 0 ? times_conj(a[k], w[k]) : a[k]; });
    });
}

// The last pass of rows (lanes = 1) and its inverse, with product(set)(Int<R>, index, stride, a) between them, which
// has points index + k * stride of a set's spectrum in a[0 … R - 1] and leaves what to go back from there. Spectra are
// stored as [k][butterfly], so that neighbouring threads have neighbouring indices. With kBack = false the transform
// ends here, and nothing is stored; with kForth = false it begins here, and `a` is undefined before the product.
template <bool kForth = true, bool kBack = true, class AnyTransform, class Product>
HYENA_DEVICE void turning_pass(const Block& block, const AnyTransform& t, Cx* buffer, Product&& product) {
    with_pass(t, last_of(t), [&](auto radix, const auto& pass) {
        constexpr int R = decltype(radix)::value;
        const uint32_t count = t.size() / R, each = pass.blocks;
        const auto turn = [&](uint32_t j, uint32_t index, const auto& at) {
            Cx a[R], w[R];
            Cx* x = buffer + t.pad(j * R);  // neighbours, and no gap between them
            powers<R>(pass, index, w);
            if constexpr (kForth) {
                unrolled<R>([&](auto k) {
                    a[k] = x[k];
                    if constexpr (k > 0) a[k] = a[k] * w[k];
                });
                butterfly<R, false>(a);
            }
            at(radix, index, each, a);
            if constexpr (kBack) {
                butterfly<R, true>(a);
                unrolled<R>([&](auto k) {
                    if constexpr (k > 0) a[k] = times_conj(a[k], w[k]);
                    x[k] = a[k];
                });
            }
        };
        block.each([&](int thread) {
            if (t.sets == 1) {
                const auto at = product(0);
                for (uint32_t j = uint32_t(thread); j < count; j += uint32_t(block.threads)) turn(j, j, at);
                return;
            }
            for (uint32_t j = uint32_t(thread); j < count; j += uint32_t(block.threads)) {
                const uint32_t set = pass.by_blocks(j);
                turn(j, j - set * each, product(set));
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
    HYENA_DEVICE float operator()(Place p) const { return x[p.at].re; }
    HYENA_DEVICE void operator()(Place p, float v) const { x[p.at].re = v; }
};

}  // namespace hyena::cuda
