// Plans of transforms of P points on a device: how each is cut up, and which tables it needs. Host code.
//
// Up to what a block's shared memory holds, one block does a whole transform. Beyond, P = P1 * P2 and time t = n1 * P2
// + n2: P2 column transforms of P1 points, a twiddle, P1 row transforms of P2 points (the "four-step" transform: Bailey
// 1990), as in cpu/plan.h.
//
// The nouns of this room:
// - Plan: of P points on a device, one Transform (`whole`) or two (`columns`, `rows`) and the Between them.
// - Transform: `sets` transforms beside each other in a block, each of `lanes` columns, in Passes of one radix
// (passes.h).
// - Butterfly: the R points that a thread has at a time, at Places of the buffer; turning_pass: the last pass and the
// first one back.
// - Region: a table that a plan needs, filled on the device (tables.h).
// - Beside: shared memory that a kernel has beside its points.
//
// E.g. P = 320 for 768 channels: radices 5, 4, 16 with strides 64, 16, 1; six channels share a block (1920 points, 128
// threads, 16 KiB). The first pass has no table, the second the powers of 5 roots, the last three pairs of powers of 20
// roots: 1280 bytes. P = 2^20 is 512 x 2048: blocks of 16 neighbouring columns (radices 8, 4, 16; 68 KiB), rows in
// blocks of their own (8, 16, 16; 17 KiB), and 43 KiB of tables.
#pragma once

#include <vector>

#include "../device/launch.h"
#include "passes.h"

namespace hyena::cuda {

// Channels that share a block, at most.
constexpr int64_t kMaxSets = 64;

// exp(i pi e / 2P) for 0 <= e < 4P, as the product of two table entries.
struct Between {
    const Cx *high = nullptr, *low = nullptr;
    uint32_t shift = 0, period = 1;       // period = 4P
    const uint32_t* frequency = nullptr;  // of each row: the column transform's permuted order

    // The twiddle between the transforms, with the right angle's part that varies along a row, for row i and column n2.
    HYENA_DEVICE Cx operator()(uint32_t i, uint32_t n2) const {
        // n2 (1 - 4 k1) modulo 4P; 4 n2 k1 < 4P.
        const uint32_t back = 4 * n2 * frequency[i];
        const uint32_t e = n2 >= back ? n2 - back : n2 + period - back;
        return high[e >> shift] * low[e & ((1u << shift) - 1)];
    }
};

// One table: `count` entries from byte `offset` on. With kRoots and kLastRoots, entry k of block b is the k-th power of
// the root of block b of a pass, [block][radix] or pairs of some powers, [pair][block] (see Pass).
struct Region {
    enum Kind : int32_t { kRoots, kLastRoots, kTurns, kOrder } kind;
    int64_t offset, count;
    // kTurns: entry o is exp(i pi num o / den). Roots: num = 1 with a twist, else 0; den blocks. kOrder: den points.
    int64_t num, den;
    // Of the passes that bring the blocks or points into their order, and of the roots' own.
    int passes, radix[kMaxPasses];
    int own = 1;
};

// Shared memory that a kernel has beside its transform's points, in floats.
struct Beside {
    int64_t per_thread = 0, per_set = 0;

    constexpr int64_t floats(int threads, int64_t sets) const { return per_thread * threads + per_set * sets; }
};

struct Plan {
    int64_t points = 0;
    bool split = false;
    Transform whole;          // one block, `whole.sets` channels; unless split
    Transform columns, rows;  // if split
    Between between;
    std::vector<Region> regions;
    int64_t table_bytes = 0;

    // The plan for P points with up to `channels` channels to put into a block, which leaves room for `beside`. Raises
    // std::invalid_argument for a P that is no product of 2, 3 and 5 or too long for the device.
    Plan(int64_t points, int64_t channels, const Limits& limits, const Beside& beside);

    // Points the tables' memory at the plan, once it is there.
    void place_tables(const void* memory);
};

// Whether a device has a plan for P points, a product of 2, 3 and 5: up to about 38 million in 227 KiB.
bool has_plan(int64_t points, const Limits& limits, const Beside& beside);

// Threads that a block of `size` points is given: 16 points each, as long as registers allow.
int threads_for(int64_t size);
// The same of a kernel that has something beside its points: as few as two thirds of them where shared memory is short,
// 0 where even these have no room.
int threads_beside(int64_t size, int64_t sets, const Beside& beside, const Limits& limits);
// Bytes of shared memory for `size` points and `extra` floats.
int64_t shared_bytes(int64_t size, int64_t extra = 0);

}  // namespace hyena::cuda
