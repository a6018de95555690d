// Sums of one tile: 16 rows of numbers times a part of a Toeplitz matrix, on tensor cores.
//
// The matrix is never stored. A lane's part of a block of 16 x 8 is two pairs of taps (h[m], h[m - 1]), read from a
// table of all pairs, and the second pair of a block is the first of its neighbour. Blocks above the diagonal do not
// take part, and inside one on the diagonal the taps of negative lags are zeros.
#pragma once

#include "segments.h"

namespace hyena::cuda {

constexpr int kTileBlocks = kTile / 8, kTileSteps = kTile / kStepDepth;
constexpr int kTileSums = kTileBlocks * 4, kTilePairs = 2 * kTileBlocks - 1;

// What is multiplied, in shared memory.
struct Products {
    const char* rows;       // fp16 (16, pitch), then the low parts
    const uint32_t* pairs;  // the pairs of taps, then those of the low parts
    int count;              // of products: 1, or 3
    int64_t low_rows;       // bytes
    int low_pairs;

    // Small products come first, and the others' sums go on where they end: low parts are 2^11 times too large.
    HYENA_DEVICE bool is_low(int product) const { return count == 3 && product == 0; }
    HYENA_DEVICE const char* rows_of(int product) const { return is_low(product) ? rows + low_rows : rows; }
    HYENA_DEVICE const uint32_t* pairs_of(int product) const {
        return count == 3 && product == 1 ? pairs + low_pairs : pairs;
    }
    HYENA_DEVICE bool ends_small(int product) const { return count == 3 && product == 2; }
};

// Which of a chunk's blocks take part. kDiagonal: those with a lag >= 0. kLast: those with a lag up to that of the
// chunk's first position and tile's first position; and, as with kSome, only steps from `first` to before `end`.
enum class Blocks { kAll, kDiagonal, kLast, kSome };

// sums (16 rows, a tile) += kTile positions of the rows, `rows` at the first of them, times a square of the matrix;
// `pairs` at the lag of the first position and the tile's first position.
template <Blocks kBlocks>
HYENA_DEVICE void add_chunk(Lanes<float, kTileSums>& sums, const char* rows, int pitch, const uint32_t* pairs,
                            int first, int end) {
    Lanes<uint32_t, kTilePairs> taps;
    each_lane([&](int lane) {
        const uint32_t* own = pairs + (lane / 4 - lane % 4 * 2) - 8 * (kTileBlocks - 1);
        HYENA_UNROLL
        for (int i = 0; i < kTilePairs; ++i)
            taps.at(lane, i) = kBlocks == Blocks::kDiagonal && i < kTileBlocks - 2 ? 0u : own[8 * i];
    });
    HYENA_UNROLL
    for (int k = 0; k < kTileSteps; ++k) {
        if ((kBlocks == Blocks::kLast || kBlocks == Blocks::kSome) && (k < first || k >= end)) continue;
        Lanes<uint32_t, 4> x;
        load_matrices(x, 0, [&](int lane) { return rows + lane % 16 * pitch + 2 * kStepDepth * k + lane / 16 * 16; });
        HYENA_UNROLL
        for (int n = 0; n < kTileBlocks; ++n) {
            if (kBlocks == Blocks::kDiagonal && 2 * k > n) continue;
            if (kBlocks == Blocks::kLast && n > 2 * k + 1) continue;
            const int i = kTileBlocks - 1 + n - 2 * k;
            multiply_add(sums, 4 * n, x, 0, taps, i, i > 0 ? i - 1 : 0);
        }
    }
}

// The sums of one tile of 16 rows, which begins at position t0 of the window.
HYENA_DEVICE void add_tile(Lanes<float, kTileSums>& sums, const Band& band, const Products& products, int t0) {
    each_lane([&](int lane) {
        HYENA_UNROLL
        for (int i = 0; i < kTileSums; ++i) sums.at(lane, i) = 0.f;
    });
    const int back = band.tiles_back(), ahead = band.tiles_ahead(), pitch = band.pitch(), window = band.window();
    for (int product = 0; product < products.count; ++product) {
        if (products.ends_small(product))
            each_lane([&](int lane) {
                HYENA_UNROLL
                for (int i = 0; i < kTileSums; ++i) sums.at(lane, i) *= kLowUndone;
            });
        const char* rows = products.rows_of(product);
        const uint32_t* pairs = products.pairs_of(product) - band.first_lag();
        const auto chunk = [&](auto blocks, int s0) {
            const int first = s0 < 0 ? -s0 / kStepDepth : 0,
                      end = s0 + kTile > window ? (window - s0) / kStepDepth : kTileSteps;
            add_chunk<Blocks(decltype(blocks)::value)>(sums, rows + 2 * s0, pitch, pairs + (t0 - s0), first, end);
        };
        if (back > 0 && t0 - kTile * (back - 1) > 0) chunk(Int<int(Blocks::kLast)>{}, t0 - kTile * back);
        for (int j = back - 1; j > 0; --j)
            if (t0 - kTile * j >= 0) chunk(Int<int(Blocks::kAll)>{}, t0 - kTile * j);
        if (ahead == 0) {
            chunk(Int<int(Blocks::kDiagonal)>{}, t0);
            continue;
        }
        for (int j = 0; j <= ahead; ++j)
            if (t0 + kTile * j < window) chunk(Int<int(Blocks::kSome)>{}, t0 + kTile * j);
    }
}

}  // namespace hyena::cuda
