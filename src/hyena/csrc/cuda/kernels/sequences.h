// The rows of a call, the arrays and operands that kernels read and write, and how blocks share them.
//
// Arrays are (B, C, L), positions contiguous. An operand is one part of z behind its short convolution, or an array as
// it is.
//
// The nouns of this room, by who holds whom:
// - Sequences: the rows of a call, their mask and lengths; Row: one of them.
// - Array: (B, C, L) numbers; Operand: an Array, or a part of z with its short convolution (taps, bias, z_bias).
// - Line: an Operand in one row and channel, as a thread reads it; Span: the Packs of 16 bytes around a chunk of it;
// Sink: an Array in one row and channel, as a thread writes it (lines.h).
// - chunk: kChunk = 8 positions that a thread has at a time; Chunks: those of a block's transforms (one_block.h).
// - Tiles: positions cut up for blocks; Pieces: Tiles of every channel (elementwise.h).
// - Spectra: of filters; Strided: the points of one that a butterfly of the last pass makes (one_block.h, passes.h).
// - Convolve, ConvolveBackward: programs of rows that fit one block (one_block.h).
// - Pairs: the (channel, row) pairs of one round over long rows; Columns, MatrixRows: their two halves (long_rows.h).
//
// E.g. Convolve of order 2 over 64 rows of 300 positions, 768 channels, P = 320: six channels to a block, 128 blocks of
// channels for each row. Threads 0 … 20 have the chunks of the first channel: 8 positions of x1 and v with three
// before, through their short convolutions, multiplied, to 8 places of the buffer; after the passes the same threads
// multiply 8 real parts by x0 and write 16 bytes of bfloat16.
#pragma once

#include "../device/block.h"

namespace hyena::cuda {

constexpr int kChunk = 8;     // positions a thread has at a time: 16 bytes of a 2-byte type
constexpr int kTapGroup = 4;  // taps are taken in groups of four, as if zeros followed the last
constexpr int kHalo = kTapGroup - 1;

struct Sequences {
    const int64_t* offsets = nullptr;  // of packed rows, in device memory; null: batch rows
    int64_t count = 0;                 // rows
    int64_t length = 0;                // of a batch row, or of all packed ones together
    int64_t longest = 0;               // positions that a row may have
    const uint8_t* mask = nullptr;     // (B, L), 1 = keep; or null
};

struct Row {
    int64_t batch, start;
    int32_t length;
};

HYENA_DEVICE void fail_on_offsets(int64_t row, int64_t begin, int64_t end, int64_t longest, int64_t total) {
#if defined(__CUDA_ARCH__)
    if (threadIdx.x != 0) return;  // another thread's trap might end the kernel before the message
    printf(
        "hyena: row %lld of cu_seqlens runs from %lld to %lld, but rows must rise from 0 to %lld and hold at most %lld "
        "positions\n",
        (long long)row, (long long)begin, (long long)end, (long long)total, (long long)longest);
    __trap();
#else
    (void)row, (void)begin, (void)end, (void)longest, (void)total;
#endif
}

HYENA_DEVICE Row row_of(const Sequences& s, int64_t r) {
    if (s.offsets == nullptr) return {r, 0, int32_t(s.length)};
    const int64_t begin = s.offsets[r], end = s.offsets[r + 1];
    // Offsets are in device memory, and the host does not wait for them: a wrong one stops the kernel here.
    const bool ends = (r > 0 || begin == 0) && (r + 1 < s.count || end == s.length);
    if (begin < 0 || end < begin || end > s.length || end - begin > s.longest || !ends) {
        fail_on_offsets(r, begin, end, s.longest, s.length);
        return {0, 0, 0};
    }
    return {0, begin, int32_t(end - begin)};
}

// Positions are contiguous; the other strides are in bytes.
struct Array {
    void* data = nullptr;
    Storage storage = Storage::kFloat;
    int64_t batch_stride = 0, channel_stride = 0;

    HYENA_DEVICE char* at(const Row& row, uint32_t channel) const {
        return static_cast<char*>(data) + row.batch * batch_stride + channel * channel_stride +
               (row.start << shift_of(storage));
    }
};

struct Operand {
    Array array;
    const float* weight =
        nullptr;                  // (channels, taps), the last tap for the position itself; null: no short convolution
    const float* bias = nullptr;  // (channels), or null
    int32_t taps = 0;
    const float* z_bias =
        nullptr;  // (channels), added to the array where positions count, before the short convolution; or null
    bool masked = false;  // whether the mask applies without a short convolution too

    HYENA_DEVICE bool given() const { return array.data != nullptr; }
};

// Positions in tiles: of batch rows, every row has its own; packed rows share them, so that short ones need no block
// each.
struct Tiles {
    int64_t rows, each;  // batch rows, and tiles of one

    Tiles() = default;
    Tiles(const Sequences& s, int64_t positions)
        : rows(s.offsets == nullptr ? s.count : 1), each((s.length + positions - 1) / positions) {}
    HYENA_DEVICE int64_t count() const { return rows * each; }

    // begin(row)(t) for the thread's chunks among those that begin in tile `index`: what begin() reads is read once a
    // row.
    template <class Begin>
    HYENA_DEVICE void chunks(const Sequences& s, int64_t index, int positions, const Block& block, int thread,
                             Begin&& begin_row) const {
        const int64_t begin = index % each * positions,
                      end = begin + positions < s.length ? begin + positions : s.length;
        if (s.offsets == nullptr) {
            const Row row = row_of(s, index / each);
            const auto chunk = begin_row(row);
            for (int t = int(begin) + thread * kChunk; t < end; t += block.threads * kChunk) chunk(t);
            return;
        }
        if (s.offsets[0] != 0 || s.offsets[s.count] != s.length) {
            fail_on_offsets(0, s.offsets[0], s.offsets[s.count], s.longest, s.length);
            return;
        }
        int64_t low = 0, high = s.count;  // the first row that ends behind `begin`
        while (low < high) {
            const int64_t middle = (low + high) / 2;
            if (s.offsets[middle + 1] > begin)
                high = middle;
            else
                low = middle + 1;
        }
        for (int64_t r = low; r < s.count && s.offsets[r] < end; ++r) {
            const Row row = row_of(s, r);
            // Chunks stand at multiples of their size in the row.
            const int64_t from = row.start > begin ? 0 : (begin - row.start + kChunk - 1) / kChunk * kChunk;
            const int64_t to = row.start + row.length < end ? row.length : end - row.start;
            if (from + thread * kChunk >= to) continue;
            const auto chunk = begin_row(row);
            for (int64_t t = from + thread * kChunk; t < to; t += block.threads * kChunk) chunk(int(t));
        }
    }
};

// Adds up `kSums` numbers of each of the threads that work on a set: sums[set * kSums + k] += what the set's threads
// left at partial[k * threads + thread]. Two levels, so that no sum is long.
template <int kSums>
HYENA_DEVICE void add_up(const Block& block, int sets, int threads_per_set, float* partial, float* sums) {
    constexpr int kRun = 16;
    const int runs = (threads_per_set + kRun - 1) / kRun;
    block.each([&](int thread) {
        for (int i = thread; i < sets * kSums * runs; i += block.threads) {
            const int run = i % runs, k = i / runs % kSums, set = i / runs / kSums;
            float* p = partial + k * block.threads + set * threads_per_set;
            const int end = threads_per_set < (run + 1) * kRun ? threads_per_set : (run + 1) * kRun;
            float sum = 0.f;
            for (int at = run * kRun; at < end; ++at) sum += p[at];
            p[run * kRun] = sum;
        }
    });
    block.each([&](int thread) {
        for (int i = thread; i < sets * kSums; i += block.threads) {
            const float* p = partial + i % kSums * block.threads + i / kSums * threads_per_set;
            float sum = 0.f;
            for (int run = 0; run < runs; ++run) sum += p[run * kRun];
            sums[i] += sum;
        }
    });
}

}  // namespace hyena::cuda
