#include "launch.cuh"

namespace hyena::cuda {
HYENA_BACKWARD_PROGRAMS(HYENA_INSTANTIATE)
}  // namespace hyena::cuda
