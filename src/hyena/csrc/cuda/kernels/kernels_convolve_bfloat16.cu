// Convolutions of rows that fit one block, of the lengths that they are compiled for, in bfloat16.
#include "../device/launch.cuh"
#include "programs.h"

namespace hyena::cuda {
HYENA_FIXED_PROGRAMS(HYENA_INSTANTIATE, Convolve, Storage::kBFloat16)
}  // namespace hyena::cuda
