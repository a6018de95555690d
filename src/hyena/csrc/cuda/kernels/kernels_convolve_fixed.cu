// Convolutions of rows that fit one block, of the lengths and the dtype that they are compiled for.
#include "../device/launch.cuh"
#include "programs.h"

namespace hyena::cuda {
HYENA_FIXED_PROGRAMS(HYENA_INSTANTIATE, Convolve)
}  // namespace hyena::cuda
