// Filling of the tables that plans need.
#pragma once

#include "plan.h"

namespace hyena::cuda {

// Block or point `i` of so many, in the order that passes of these radices leave them in: the frequency, or the index
// of the root.
HYENA_DEVICE int64_t natural(int64_t i, int64_t count, const int* radices, int passes) {
    int64_t index = 0, step = 1;
    for (int s = 0; s < passes; ++s) {
        count /= radices[s];
        index += step * (i / count);
        i %= count;
        step *= radices[s];
    }
    return index;
}

// Powers that a RootPair of the last pass holds.
HYENA_DEVICE int64_t power_of(int64_t pair, bool second) {
    return pair == 2 ? (second ? 12 : 8) : 2 * pair + (second ? 2 : 1);
}

struct FillTable {
    static constexpr int kBlocksTogether = 1;
    Region region;
    char* memory = nullptr;

    int64_t blocks() const { return (region.count + kMaxThreads - 1) / kMaxThreads; }

    // Power k of the root of block b: the R-th root of exp(2 i pi (num - 4 c) / (4 blocks)), c the block's natural
    // index.
    HYENA_DEVICE Cx root(int64_t b, int64_t k) const {
        const int64_t c = natural(b, region.den, region.radix, region.passes);
        return half_turns((region.num - 4 * c) * k, 2 * region.own * region.den);
    }

    HYENA_DEVICE void operator()(const Block& block, char*, int64_t index) const {
        block.each([&](int thread) {
            const int64_t o = index * block.threads + thread;
            if (o >= region.count) return;
            char* at = memory + region.offset;
            switch (region.kind) {
                case Region::kRoots: reinterpret_cast<Cx*>(at)[o] = root(o / region.own, o % region.own); break;
                case Region::kLastRoots: {
                    const int64_t pair = o / region.den, b = o % region.den;
                    reinterpret_cast<RootPair*>(at)[o] = {root(b, power_of(pair, false)),
                                                          root(b, power_of(pair, true))};
                    break;
                }
                case Region::kTurns: reinterpret_cast<Cx*>(at)[o] = half_turns(region.num * o, region.den); break;
                case Region::kOrder:
                    reinterpret_cast<uint32_t*>(at)[o] = uint32_t(natural(o, region.den, region.radix, region.passes));
                    break;
            }
        });
    }
};

}  // namespace hyena::cuda
