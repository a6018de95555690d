// Spectra of filters, a block of W filters at a time, as the groups of channels that use them read and add to them.
#pragma once

#include "../fft/fft.h"
#include "../simd/ahead.h"
#include "sequences.h"

namespace hyena {
namespace {

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
    int64_t width;           // filters in the block: the distance from real to imaginary parts
    bool direct;             // lane i is filter i of the block
    bool overwrite = false;  // nothing has been added yet, and there is no zero to add to
    bool long_array;         // all spectra together are more than the caches hold
    bool past_caches;        // what is put need not stay there
    int lanes;
    int filter[W];

    SpectrumOf(const Spectra& s, int64_t f, const Blocks<T>& blocks, int64_t block, Group group)
        : data(static_cast<T*>(s.data) + f * s.filter_stride + block * 2 * s.points * W),
          width(blocks.width(block)),
          direct(blocks.ratio() == 1),
          long_array(s.filters * s.channels * s.points * int64_t(2 * sizeof(T)) > kResultInCache),
          past_caches(long_array),
          lanes(group.lanes) {
        for (int i = 0; i < W; ++i) filter[i] = i < lanes ? int((group.first + i) / blocks.ratio() - block * W) : 0;
    }
    // Asks for a point that will be read.
    HYENA_INLINE void ask_for(int64_t k) const {
        if (direct) hyena::ask_for<2 * W>(data + 2 * width * k);
    }
    // Of a sum over `rows`: whether the next one is the first. What a second will add to stays in the caches.
    void start(bool first, int64_t rows) {
        overwrite = first;
        past_caches = long_array && rows == 1;
    }
    HYENA_INLINE Cx<T> operator[](int64_t k) const {
        const T* at = data + 2 * width * k;
        if (__builtin_expect(direct, 1)) return {load_lanes<T>(at, lanes), load_lanes<T>(at + width, lanes)};
        return spread(at);
    }
    HYENA_INLINE void add(int64_t k, Cx<T> v) const {
        T* at = data + 2 * width * k;
        if (__builtin_expect(direct, 1)) {
            if (!overwrite) v = v + Cx<T>{load_lanes<T>(at, lanes), load_lanes<T>(at + width, lanes)};
            put(k, v);
        } else {
            gather(at, v);
        }
    }
    HYENA_INLINE void put(int64_t k, Cx<T> v) const {
        T* at = data + 2 * width * k;
        if (past_caches) {
            stream_lanes<T>(at, v.re, lanes);
            stream_lanes<T>(at + width, v.im, lanes);
        } else {
            store_lanes<T>(at, v.re, lanes);
            store_lanes<T>(at + width, v.im, lanes);
        }
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

// Where the gradients of one block's spectra start: nowhere if its first row can write them instead of adding (one
// group of channels for each block), else at zero.
template <class T>
bool start_gradient(const Spectra& s, const Blocks<T>& blocks, int64_t block, bool any_rows) {
    if (blocks.ratio() == 1 && any_rows) return true;
    for (int64_t f = 0; f < s.filters; ++f)
        std::memset(static_cast<T*>(s.data) + f * s.filter_stride + block * 2 * s.points * Simd<T>::W, 0,
                    size_t(blocks.width(block)) * 2 * s.points * sizeof(T));
    return false;
}

// d / P of one group of channels: d times the input is a constant added to the filter's spectrum.
template <class T>
Vec<T> skip_of(const void* d, int64_t offset, Group group, int64_t points) {
    Vec<T> v = zero<T>();
    if (d) v = load_lanes<T>(static_cast<const T*>(d) + offset + group.first, group.lanes) * (T(1) / T(points));
    return v;
}

}  // namespace
}  // namespace hyena
