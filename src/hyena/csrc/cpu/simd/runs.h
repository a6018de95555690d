// A vector for each of many positions, in memory that has something else between them.
#pragma once

#include <cstdint>

#include "simd.h"

namespace hyena {
namespace {

// W lanes a position, in runs of positions `step` numbers apart, with `gap` more numbers between runs.
template <class T>
struct Runs {
    T* data;
    int64_t step, run, gap;
    HYENA_INLINE T* operator()(int64_t t) const { return data + t * step + t / run * gap; }
    // The first position behind the run that t is in.
    int64_t end(int64_t t) const { return (t / run + 1) * run; }
    // f(t, its lanes) for positions [begin, end), in order.
    template <class F>
    HYENA_INLINE void over(int64_t begin, int64_t end, F&& f) const {
        for (int64_t t = begin; t < end;) {
            const int64_t behind = this->end(t), last = behind < end ? behind : end;
            for (T* at = (*this)(t); t < last; ++t, at += step) f(t, at);
        }
    }
};

}  // namespace
}  // namespace hyena
