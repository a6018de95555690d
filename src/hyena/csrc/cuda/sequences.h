// The arrays that kernels read and write, eight positions at a time, with the short convolution, mask and packed rows.
//
// Arrays are (B, C, L), positions contiguous. An operand is one part of z behind its short convolution, or an array as it is.
#pragma once

#include "block.h"

namespace hyena::cuda {

constexpr int kChunk = 8;      // positions a thread has at a time: 16 bytes of a 2-byte type
constexpr int kTapGroup = 4;   // taps are taken in groups of four, as if zeros followed the last
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
    printf("hyena: row %lld of cu_seqlens runs from %lld to %lld, but rows must rise from 0 to %lld and hold at most %lld positions\n",
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

// Strides in elements; the stride of a position is 1.
struct Array {
    void* data = nullptr;
    Storage storage = Storage::kFloat;
    int64_t batch_stride = 0, channel_stride = 0;

    HYENA_DEVICE char* at(const Row& row, int64_t channel) const {
        return static_cast<char*>(data) + (row.batch * batch_stride + channel * channel_stride + row.start) * bytes_of(storage);
    }
};

struct Operand {
    Array array;
    const float* weight = nullptr;  // (channels, taps), the last tap for the position itself; null: no short convolution
    const float* bias = nullptr;    // (channels), or null
    int32_t taps = 0;

    HYENA_DEVICE bool given() const { return array.data != nullptr; }
};

// N values that one access moves, as far as accesses go: 16 bytes.
template <class IO, int N>
struct alignas(N * sizeof(IO) < 16 ? N * sizeof(IO) : 16) Pack {
    IO values[N];
};

// A row and channel of an operand.
struct Line {
    const char* data;
    const uint8_t* keep;  // mask of the row, or null; applied only with a short convolution
    const float* last;  // tap of the position itself
    int32_t length, taps;
    Storage storage;
    float bias;

    HYENA_DEVICE Line(const Operand& o, const Sequences& s, const Row& row, int64_t channel)
        : data(o.array.at(row, channel)),
          keep(s.mask != nullptr && o.taps > 0 ? s.mask + row.batch * s.length + row.start : nullptr),
          last(o.weight + (channel + 1) * o.taps - 1),
          length(row.length),
          taps(o.taps),
          storage(o.array.storage),
          bias(o.taps > 0 && o.bias != nullptr ? o.bias[channel] : 0.f) {}

    HYENA_DEVICE int groups() const { return (taps + kTapGroup - 1) / kTapGroup; }
    // Weight of the position j before.
    HYENA_DEVICE float tap(int j) const { return j < taps ? last[-j] : 0.f; }

    HYENA_DEVICE bool keeps(int t) const { return t >= 0 && t < length && (keep == nullptr || keep[t] != 0); }

    // Whether positions t … t + n - 1 are all in the row and kept.
    HYENA_DEVICE bool inside(int t, int n) const { return keep == nullptr && t >= 0 && t + n <= length; }

    // Values at t … t + N - 1, zero outside the row and where masked.
    template <int N>
    HYENA_DEVICE void raw(int t, float* x) const {
        with_storage(storage, [&](auto tag) {
            using IO = decltype(tag);
            const IO* p = reinterpret_cast<const IO*>(data) + t;
            if (N % 4 == 0 && t >= 0 && t + N <= length && reinterpret_cast<uintptr_t>(p) % alignof(Pack<IO, N>) == 0) {
                const Pack<IO, N> pack = *reinterpret_cast<const Pack<IO, N>*>(p);
                HYENA_UNROLL
                for (int e = 0; e < N; ++e) x[e] = to_float(pack.values[e]);
            } else {
                HYENA_UNROLL
                for (int e = 0; e < N; ++e) x[e] = t + e >= 0 && t + e < length ? to_float(p[e]) : 0.f;
            }
        });
        if (keep != nullptr) drop<N>(t, x);
    }

    // Zeros where positions t … t + N - 1 are outside the row or masked.
    template <int N>
    HYENA_DEVICE void drop(int t, float* x) const {
        HYENA_UNROLL
        for (int e = 0; e < N; ++e)
            if (!keeps(t + e)) x[e] = 0.f;
    }

    // Values at t … t + kChunk + kHalo - 1.
    HYENA_DEVICE void ahead(int t, float* x) const {
        raw<kChunk>(t, x);
        float more[4];  // one vector rather than three numbers
        raw<4>(t + kChunk, more);
        HYENA_UNROLL
        for (int e = 0; e < kHalo; ++e) x[kChunk + e] = more[e];
    }

    // Values at t - kHalo … t + kChunk + kAfter - 1, kAfter being 0 or kHalo.
    template <int kAfter>
    HYENA_DEVICE void window(int t, float* x) const {
        float more[4];
        raw<4>(t - 4, more);
        HYENA_UNROLL
        for (int e = 0; e < kHalo; ++e) x[e] = more[4 - kHalo + e];
        if constexpr (kAfter == 0)
            raw<kChunk>(t, x + kHalo);
        else
            ahead(t, x + kHalo);
    }

    // The short convolution at t … t + kChunk + kAfter - 1 of the window at t, for the first group of taps.
    template <int kAfter>
    HYENA_DEVICE void convolve(int t, const float* x, float* out) const {
        float w[kTapGroup];
        HYENA_UNROLL
        for (int j = 0; j < kTapGroup; ++j) w[j] = tap(j);
        HYENA_UNROLL
        for (int e = 0; e < kChunk + kAfter; ++e) out[e] = bias;
        HYENA_UNROLL
        for (int j = 0; j < kTapGroup; ++j)
            if (j < taps) {  // a weight of zero would spread what is not finite
                HYENA_UNROLL
                for (int e = 0; e < kChunk + kAfter; ++e) out[e] += w[j] * x[kHalo + e - j];
            }
        if (!inside(t, kChunk + kAfter)) drop<kChunk + kAfter>(t, out);
    }

    // The operand at t … t + kChunk - 1, any number of taps.
    HYENA_DEVICE void read(int t, float* out) const {
        if (taps == 0) {
            raw<kChunk>(t, out);
            return;
        }
        float x[kHalo + kChunk];
        window<0>(t, x);
        convolve<0>(t, x, out);
        for (int g = 1; g < groups(); ++g) {
            window<0>(t - g * kTapGroup, x);
            HYENA_UNROLL
            for (int e = 0; e < kChunk; ++e) {
                float sum = 0.f;
                HYENA_UNROLL
                for (int j = 0; j < kTapGroup; ++j)
                    if (g * kTapGroup + j < taps) sum += tap(g * kTapGroup + j) * x[kHalo + e - j];
                if (keeps(t + e)) out[e] += sum;
            }
        }
    }
};

// x *= the operand, if there is one.
HYENA_DEVICE void gate(const Operand& o, const Sequences& s, const Row& row, int64_t channel, int t, float* x) {
    if (!o.given()) return;
    float g[kChunk];
    Line(o, s, row, channel).read(t, g);
    HYENA_UNROLL
    for (int e = 0; e < kChunk; ++e) x[e] *= g[e];
}

// Writes positions t … t + kChunk - 1 of a row and channel.
HYENA_DEVICE void write(const Array& array, const Row& row, int64_t channel, int t, const float* x) {
    char* data = array.at(row, channel);
    with_storage(array.storage, [&](auto tag) {
        using IO = decltype(tag);
        using Values = Pack<IO, kChunk>;
        IO* p = reinterpret_cast<IO*>(data) + t;
        if (t + kChunk <= row.length && reinterpret_cast<uintptr_t>(p) % alignof(Values) == 0) {
            Values pack;
            HYENA_UNROLL
            for (int e = 0; e < kChunk; ++e) pack.values[e] = from_float<IO>(x[e]);
            *reinterpret_cast<Values*>(p) = pack;
        } else {
            HYENA_UNROLL
            for (int e = 0; e < kChunk; ++e)
                if (t + e < row.length) p[e] = from_float<IO>(x[e]);
        }
    });
}

// The gradient of one part of z, through the adjoint of its short convolution (up to four taps): `g` is that of the part at
// t … t + kChunk + kHalo - 1, `x` the window of z. Adds to the sums of the taps' gradients and the bias's.
HYENA_DEVICE void write_adjoint(const Array& dz, const Row& row, const Line& line, int64_t channel, int t, float* g, const float* x,
                                float* sums) {
    float dx[kChunk], w[kTapGroup];
    const bool inside = line.inside(t, kChunk + kHalo);
    if (!inside) line.drop<kChunk + kHalo>(t, g);
    HYENA_UNROLL
    for (int j = 0; j < kTapGroup; ++j) w[j] = line.tap(j);
    HYENA_UNROLL
    for (int e = 0; e < kChunk; ++e) {
        dx[e] = 0.f;
        HYENA_UNROLL
        for (int j = 0; j < kTapGroup; ++j)
            if (j < line.taps) {
                dx[e] += w[j] * g[e + j];
                sums[j] += g[e] * x[kHalo + e - j];
            }
        sums[kTapGroup] += g[e];
    }
    if (!inside) line.drop<kChunk>(t, dx);
    write(dz, row, channel, t, dx);
}

// Positions in tiles: of batch rows, every row has its own; packed rows share them, so that short ones need no block each.
struct Tiles {
    int64_t rows, each;  // batch rows, and tiles of one

    Tiles() = default;
    Tiles(const Sequences& s, int64_t positions) : rows(s.offsets == nullptr ? s.count : 1), each((s.length + positions - 1) / positions) {}
    HYENA_DEVICE int64_t count() const { return rows * each; }

    // fn(row, t) for the thread's chunks among those that begin in tile `index`.
    template <class Fn>
    HYENA_DEVICE void chunks(const Sequences& s, int64_t index, int positions, const Block& block, int thread, Fn&& fn) const {
        const int64_t begin = index % each * positions, end = begin + positions < s.length ? begin + positions : s.length;
        if (s.offsets == nullptr) {
            const Row row = row_of(s, index / each);
            for (int t = int(begin) + thread * kChunk; t < end; t += block.threads * kChunk) fn(row, t);
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
            for (int64_t t = from + thread * kChunk; t < to; t += block.threads * kChunk) fn(row, int(t));
        }
    }
};

// Adds up `kSums` numbers of each of the threads that work on a set: sums[set * kSums + k] += what the set's threads left at
// partial[k * threads + thread]. Two levels, so that no sum is long.
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
