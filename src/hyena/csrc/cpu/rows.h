// How kernels read and write sequences: groups of channels, gates after the short convolution, spectra.
#pragma once

#include "fft.h"
#include "work.h"

namespace hyena {
namespace {

// Up to W neighbouring channels, from `first` on.
struct Group {
    int64_t first;
    int lanes;
};

// One group of channels of an (R, L, C) array in one row.
template <class T, class IO>
struct Channels {
    IO* data;
    int64_t stride;
    int lanes;

    Channels(const Array& a, const Row& row, Group group)
        : data(a.data ? static_cast<IO*>(a.data) + row.batch * a.batch_stride + row.start * a.stride + group.first : nullptr),
          stride(a.stride),
          lanes(group.lanes) {}
    HYENA_INLINE Vec<T> operator[](int64_t t) const { return load_lanes<T>(data + t * stride, lanes); }
    HYENA_INLINE void put(int64_t t, Vec<T> v) const { store_lanes<T>(data + t * stride, v, lanes); }
    HYENA_INLINE void stream(int64_t t, Vec<T> v) const { stream_lanes<T>(data + t * stride, v, lanes); }
};

// The positions of a row that are kept.
struct Keep {
    const uint8_t* mask;
    int64_t length;

    Keep(const Sequence& seq, const Row& row)
        : mask(seq.mask ? seq.mask + row.batch * seq.mask_stride + row.start : nullptr), length(row.length) {}
    HYENA_INLINE bool operator[](int64_t t) const { return t < length && (!mask || mask[t]); }
};

// One of the N + 1 parts of z after the short convolution: zero outside the row and where the mask says so.
template <class T, class IO>
struct Convolved {
    Channels<T, IO> z;
    Keep keep;
    const T* taps;  // K vectors, the current position's last, then the bias
    int64_t count;

    HYENA_INLINE Vec<T> operator[](int64_t t) const {
        constexpr int W = Simd<T>::W;
        if (!keep[t]) return zero<T>();
        if (__builtin_expect(count == 3 && t >= 2 && !keep.mask, 1))
            return load(taps + 3 * W) + load(taps + 2 * W) * z[t] + load(taps + W) * z[t - 1] + load(taps) * z[t - 2];
        Vec<T> sum = load(taps + count * W);
        for (int64_t j = 0; j < count && j <= t; ++j)
            if (keep[t - j]) sum += load(taps + (count - 1 - j) * W) * z[t - j];
        return sum;
    }
};

// Lays the short filter of one group out in lanes: K vectors of taps and one of biases.
template <class T>
void lay_out(const ShortFilter& filter, Group group, T* to) {
    constexpr int W = Simd<T>::W;
    const T* weight = static_cast<const T*>(filter.weight) + group.first * filter.taps;
    const T* bias = filter.bias ? static_cast<const T*>(filter.bias) + group.first : nullptr;
    for (int lane = 0; lane < W; ++lane)
        for (int64_t k = 0; k <= filter.taps; ++k) {
            T value = 0;
            if (lane < group.lanes) value = k < filter.taps ? weight[lane * filter.taps + k] : (bias ? bias[lane] : T(0));
            to[k * W + lane] = value;
        }
}

// Blocks of W filter channels, and the groups of channels that use a block: channel c uses filter c / (C / G).
template <class T>
struct Blocks {
    static constexpr int W = Simd<T>::W;
    int64_t channels, filters;  // C, G

    int64_t count() const { return (filters + W - 1) / W; }
    int64_t width(int64_t block) const {
        const int64_t left = filters - block * W;
        return left < W ? left : W;
    }
    int64_t ratio() const { return channels / filters; }
    int64_t groups(int64_t block) const { return (width(block) * ratio() + W - 1) / W; }
    Group group(int64_t block, int64_t i) const {
        const int64_t first = i * W, all = width(block) * ratio();
        return {block * W * ratio() + first, int(all - first < W ? all - first : W)};
    }
};

// The spectrum of a block of filters as one group of channels sees it.
template <class T>
struct SpectrumOf {
    static constexpr int W = Simd<T>::W;
    T* data;
    int64_t width;  // filters in the block: the distance from real to imaginary parts
    bool direct;    // lane i is filter i of the block
    bool fresh = false;  // nothing has been added yet, and there is no zero to add to
    int lanes;
    int filter[W];

    SpectrumOf(const Spectra& s, int64_t f, const Blocks<T>& blocks, int64_t block, Group group)
        : data(static_cast<T*>(s.data) + f * s.filter_stride + block * 2 * s.points * W),
          width(blocks.width(block)),
          direct(blocks.ratio() == 1),
          lanes(group.lanes) {
        for (int i = 0; i < W; ++i)
            filter[i] = i < lanes ? int((group.first + i) / blocks.ratio() - block * W) : 0;
    }
    HYENA_INLINE Cx<T> operator[](int64_t k) const {
        const T* at = data + 2 * width * k;
        if (__builtin_expect(direct, 1)) return {load_lanes<T>(at, lanes), load_lanes<T>(at + width, lanes)};
        return spread(at);
    }
    HYENA_INLINE void add(int64_t k, Cx<T> v) const {
        T* at = data + 2 * width * k;
        if (__builtin_expect(direct, 1)) {
            if (!fresh) v = v + Cx<T>{load_lanes<T>(at, lanes), load_lanes<T>(at + width, lanes)};
            put(k, v);
        } else {
            gather(at, v);
        }
    }
    HYENA_INLINE void put(int64_t k, Cx<T> v) const {
        T* at = data + 2 * width * k;
        store_lanes<T>(at, v.re, lanes);
        store_lanes<T>(at + width, v.im, lanes);
    }

  private:
    Cx<T> spread(const T* at) const {
        Cx<T> v{};
        for (int i = 0; i < W; ++i) {
            v.re[i] = at[filter[i]];
            v.im[i] = at[width + filter[i]];
        }
        return v;
    }
    void gather(T* at, Cx<T> v) const {
        for (int i = 0; i < lanes; ++i) {
            at[filter[i]] += v.re[i];
            at[width + filter[i]] += v.im[i];
        }
    }
};

// Where the gradients of one block's spectra start: nowhere if its first row can write them instead of adding (one group of
// channels for each block), else at zero.
template <class T>
bool start_gradient(const Spectra& s, const Blocks<T>& blocks, int64_t block, bool any_rows) {
    if (blocks.ratio() == 1 && any_rows) return true;
    for (int64_t f = 0; f < s.filters; ++f)
        std::memset(static_cast<T*>(s.data) + f * s.filter_stride + block * 2 * s.points * Simd<T>::W, 0,
                    size_t(blocks.width(block)) * 2 * s.points * sizeof(T));
    return false;
}

// Runs task(row, block, group, memory, team) for every row and group of channels of a call, each with its worker's memory (made by
// `make(parts)`). Neighbouring tasks share a row, or a group's spectrum.
template <class T, class Make, class Task>
void share_rows(const Sequence& seq, const Blocks<T>& blocks, bool by_row, Make&& make, Task&& task) {
    int64_t groups = 0;
    for (int64_t b = 0; b < blocks.count(); ++b) groups += blocks.groups(b);
    const int64_t rows = seq.num_rows;
    share(seq.pool, groups * rows, make, [&](int64_t i, auto& memory, const Team& team) {
        int64_t block = 0, group = by_row ? i % groups : i / rows;
        while (group >= blocks.groups(block)) group -= blocks.groups(block++);
        task(seq.rows[by_row ? i / groups : i % rows], block, blocks.group(block, group), memory, team);
    });
}

// Runs task(row, block, group, memory, team, fresh) likewise, the rows and groups of one block of spectra one after the other,
// since they all add to its gradient; `fresh` where nothing has been added yet, nor a zero been written.
template <class T, class Make, class Task>
void share_blocks(const Sequence& seq, const Blocks<T>& blocks, const Spectra& dspectra, Make&& make, Task&& task) {
    share(seq.pool, blocks.count(), make, [&](int64_t block, auto& memory, const Team& team) {
        bool fresh = start_gradient(dspectra, blocks, block, seq.num_rows > 0);
        for (int64_t i = 0; i < blocks.groups(block); ++i)
            for (int64_t r = 0; r < seq.num_rows; ++r) {
                task(seq.rows[r], block, blocks.group(block, i), memory, team, fresh);
                fresh = false;
            }
    });
}

// d / P of one group of channels: d times the input is a constant added to the filter's spectrum.
template <class T>
Vec<T> skip_of(const void* d, int64_t offset, Group group, int64_t points) {
    Vec<T> v = zero<T>();
    if (d) v = load_lanes<T>(static_cast<const T*>(d) + offset + group.first, group.lanes) * (T(1) / T(points));
    return v;
}

template <class T>
HYENA_INLINE Cx<T> times(Cx<T> a, Cx<T> b) {
    return {a.re * b.re - a.im * b.im, a.re * b.im + a.im * b.re};
}
// a times the conjugate of b.
template <class T>
HYENA_INLINE Cx<T> times_conj(Cx<T> a, Cx<T> b) {
    return {a.re * b.re + a.im * b.im, a.im * b.re - a.re * b.im};
}

}  // namespace
}  // namespace hyena
