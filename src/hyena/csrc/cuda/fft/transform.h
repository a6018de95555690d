// What passes are made of: a Transform that a plan lays out, or one that is known when its kernel is compiled.
#pragma once

#include "../device/block.h"
#include "butterflies.h"

namespace hyena::cuda {

// Two powers of a block's root.
struct alignas(16) RootPair {
    Cx first, second;
};

// Pairs of powers in a last pass's table, for each block.
constexpr int pairs_of(int radix) { return radix == 16 ? 3 : radix > 3 ? 2 : radix / 2; }

// Places that so many points may take.
HYENA_DEVICE int64_t buffer_places(uint32_t points) { return int64_t(points) + (points >> 4) + 1; }

struct Pass {
    int radix = 1;
    uint32_t stride = 1;  // between the inputs of a butterfly, in points of the buffer
    uint32_t step = 1;    // the same, in padded places
    uint32_t blocks = 1;  // of a transform, before the pass
    FastDiv by_stride, by_blocks;
    // Powers of the root of every block. First pass: none. Last pass, of many blocks: some powers (see `powers`),
    // [pair][block]. The others: all powers, [block][radix].
    const void* roots = nullptr;
};

constexpr int kMaxPasses = 10;

struct Transform {
    uint32_t points = 1, sets = 1, lanes = 1, lane_shift = 0;
    int passes = 0;
    uint32_t pad_shift = 31;  // 4, or 31 for no padding
    float scale = 1.f;        // 1 / points
    Pass pass[kMaxPasses];

    HYENA_DEVICE uint32_t size() const { return points * sets * lanes; }
    HYENA_DEVICE uint32_t pad(uint32_t i) const { return i + (i >> pad_shift); }
};

// A transform that is known when its kernel is compiled: radices in order, all strides but the last multiples of 16.
// Only the tables' addresses are not.
template <int kRadix, uint32_t kStride, uint32_t kBlocks>
struct FixedPass {
    static constexpr int radix = kRadix;
    static constexpr uint32_t stride = kStride, blocks = kBlocks;
    const void* roots = nullptr;

    HYENA_DEVICE static constexpr uint32_t by_blocks(uint32_t n) { return n / kBlocks; }
};

template <int kSets, int... kRadices>
struct FixedTransform {
    static constexpr int passes = sizeof...(kRadices), radices[] = {kRadices...};
    static constexpr uint32_t points = (uint32_t(kRadices) * ...), sets = kSets;
    static constexpr float scale = 1.f / float(points);
    const void* roots[passes] = {};

    HYENA_DEVICE static constexpr uint32_t size() { return points * sets; }
    HYENA_DEVICE static constexpr uint32_t pad(uint32_t i) { return i + (i >> 4); }

    static constexpr uint32_t blocks_before(int s) {
        uint32_t blocks = 1;
        for (int i = 0; i < s; ++i) blocks *= uint32_t(radices[i]);
        return blocks;
    }
    template <int s>
    using PassAt = FixedPass<radices[s], points / blocks_before(s + 1), blocks_before(s)>;

    FixedTransform() = default;
    // Of a transform that `is_this`.
    explicit FixedTransform(const Transform& t) {
        for (int s = 0; s < passes; ++s) roots[s] = t.pass[s].roots;
    }
    static bool is_this(const Transform& t) {
        bool same = t.points == points && t.sets == sets && t.lanes == 1 && t.passes == passes && t.pad_shift == 4;
        for (int s = 0; s < passes && same; ++s) same = t.pass[s].radix == radices[s];
        return same;
    }
};

// fn(Int<radix>{}, pass s).
template <class Fn>
HYENA_DEVICE void with_pass(const Transform& t, int s, Fn&& fn) {
    with_radix(t.pass[s].radix, [&](auto radix) { fn(radix, t.pass[s]); });
}
template <int kSets, int... kRadices, int s, class Fn>
HYENA_DEVICE void with_pass(const FixedTransform<kSets, kRadices...>& t, Int<s>, Fn&& fn) {
    using PassHere = typename FixedTransform<kSets, kRadices...>::template PassAt<s>;
    fn(Int<PassHere::radix>{}, PassHere{t.roots[s]});
}
// fn(the pass) for all between the first and the last, or from last to first.
template <bool kInverse, class Fn>
HYENA_DEVICE void each_middle(const Transform& t, Fn&& fn) {
    for (int s = 1; s < t.passes - 1; ++s) fn(kInverse ? t.passes - 1 - s : s);
}
template <bool kInverse, int kSets, int... kRadices, class Fn>
HYENA_DEVICE void each_middle(const FixedTransform<kSets, kRadices...>&, Fn&& fn) {
    constexpr int count = int(sizeof...(kRadices)) - 2;
    unrolled<count>([&](auto s) { fn(Int<kInverse ? count - decltype(s)::value : 1 + decltype(s)::value>{}); });
}
HYENA_DEVICE int last_of(const Transform& t) { return t.passes - 1; }
template <int kSets, int... kRadices>
HYENA_DEVICE auto last_of(const FixedTransform<kSets, kRadices...>&) {
    return Int<int(sizeof...(kRadices)) - 1>{};
}

}  // namespace hyena::cuda
