// A group of channels of one sequence, and the positions of it that are kept.
#pragma once

#include "../simd/simd.h"
#include "kernels.h"

namespace hyena {
namespace {

// Results up to this size (bytes) are taken to be in the caches still when they are read.
constexpr int64_t kResultInCache = int64_t(16) << 20;

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
        : data(a.data ? static_cast<IO*>(a.data) + row.batch * a.batch_stride + row.start * a.stride +
                            a.place(group.first)
                      : nullptr),
          stride(a.stride),
          lanes(group.lanes) {}
    HYENA_INLINE Vec<T> operator[](int64_t t) const { return load_lanes<T>(data + t * stride, lanes); }
    HYENA_INLINE void put(int64_t t, Vec<T> v) const { store_lanes<T>(data + t * stride, v, lanes); }
    // `past_caches` where nobody reads it before it is out of them.
    HYENA_INLINE void put(int64_t t, Vec<T> v, bool past_caches) const {
        if (past_caches)
            stream_lanes<T>(data + t * stride, v, lanes);
        else
            put(t, v);
    }
};

// The positions of a row that are kept.
struct Keep {
    const uint8_t* mask;
    int64_t length;

    Keep(const Sequence& seq, const Row& row)
        : mask(seq.mask ? seq.mask + row.batch * seq.mask_stride + row.start : nullptr), length(row.length) {}
    HYENA_INLINE bool operator[](int64_t t) const { return t < length && (!mask || mask[t]); }
};

}  // namespace
}  // namespace hyena
