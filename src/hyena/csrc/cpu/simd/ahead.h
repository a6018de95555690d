// Asking for memory before it is read.
#pragma once

#include <cstdint>

#include "simd.h"

namespace hyena {
namespace {

// How far ahead of what goes through positions in order. Each lies in another page if rows of channels are long, where
// hardware prefetchers do not follow.
constexpr int64_t kReadAhead = 48;

// Asks for N numbers that will be read, or written.
template <int N, class T>
HYENA_INLINE void ask_for(const T* numbers) {
    for (int i = 0; i < N; i += int(64 / sizeof(T))) __builtin_prefetch(numbers + i, 0, 2);
}

// Memory that will be needed soon, to read or to write: up to four arrays with one step a position. The passes of a
// transform ask for a column's positions, which lie far apart, one block of columns ahead, between the butterflies.
struct Ahead {
    struct Stream {
        const char* data;
        int64_t step;
    };
    Stream streams[4];
    int count = 0;
    int64_t length = 0;  // positions there are

    template <class C>
    void add(const C& channels) {
        add(channels.data, channels.stride);
    }
    // Of so many positions from `first` on, which become 0 and so on.
    template <class C>
    void add(const C& channels, int64_t first, int64_t positions) {
        add(channels.data + first * channels.stride, channels.stride);
        length = positions;
    }
    template <class N>
    void add(const N* numbers, int64_t step) {
        streams[count++] = {reinterpret_cast<const char*>(numbers), int64_t(step * sizeof(N))};
    }
    HYENA_INLINE void operator()(int64_t t) const {
        if (uint64_t(t) >= uint64_t(length)) return;  // before the first position too
        for (int i = 0; i < count; ++i) __builtin_prefetch(streams[i].data + t * streams[i].step, 0, 2);
    }
};

}  // namespace
}  // namespace hyena
