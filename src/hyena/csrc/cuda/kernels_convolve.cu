#include "launch.cuh"

namespace hyena::cuda {
HYENA_CONVOLVE_PROGRAMS(HYENA_INSTANTIATE)
}  // namespace hyena::cuda
