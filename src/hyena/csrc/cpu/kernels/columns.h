// The columns of a transform whose points are filled and read in order of positions. The positions of a column lie far
// apart, each in another page of a long array: so an array is gone through in order, to or from the places of the
// points, and the columns see that buffer alone.
#pragma once

#include "../fft/right_angle.h"
#include "../simd/runs.h"
#include "sections.h"
#include "work.h"

namespace hyena {
namespace {

template <class T>
struct Columns {
    static constexpr int W = Simd<T>::W, S = 2 * W;
    const Passes<T> passes;

    // A vector for each position, in the places of a buffer's points, or of those of several sections' buffers, one
    // after the other.
    Runs<T> at_points(T* buffer) const { return {buffer, S, passes.p2(), (passes.row_stride() - passes.p2()) * S}; }

    // Columns of the first `length` vectors in the places of a buffer's points. `local` is scratch, a part for each of
    // the team.
    __attribute__((noinline)) void in(T* buffer, int64_t length, T* local, const Team& team) const {
        team.over(passes.p2(), [&](int64_t c0, int64_t c1, int part) {
            passes.columns_in(buffer, c0, c1, local + part * passes.scratch() * S,
                              [&](Point p) HYENA_LAMBDA { return p.t < length ? load(buffer + p.at) : zero<T>(); });
        });
    }

    // Columns back, and results to the places of the points.
    __attribute__((noinline)) void out(T* buffer, const Tail<T>& tail, T* local, const Team& team) const {
        team.over(passes.p2(), [&](int64_t c0, int64_t c1, int part) {
            passes.columns_out(buffer, c0, c1, local + part * passes.scratch() * S,
                               [&](Point p, Cx<T> v) HYENA_LAMBDA { store(buffer + p.at, tail.joined(p.t, v)); });
        });
    }
};

}  // namespace
}  // namespace hyena
