// A device with its current stream, and plans with their tables on it.
#pragma once

#include <memory>

#include "../../tensors.h"
#include "../kernels/programs.h"

namespace hyena::cuda {

inline float* floats(const Tensor& t) { return static_cast<float*>(t.data_ptr()); }

// The device of `t` and torch's current stream there.
Device device_of(const Tensor& t);

struct Prepared {
    Plan plan;
    Tensor tables;  // where they are torch's memory
};

// Whether kernels take transforms of P points there.
bool has_plan(int64_t points, int device);

// The plan for P points with up to `channels` channels to a block; made once for each device. `like` is any tensor
// there.
std::shared_ptr<const Prepared> prepare(int64_t points, int64_t channels, const Tensor& like, const Device& device);

}  // namespace hyena::cuda
