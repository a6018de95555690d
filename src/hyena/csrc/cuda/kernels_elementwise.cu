#include "launch.cuh"

namespace hyena::cuda {
HYENA_ELEMENTWISE_PROGRAMS(HYENA_INSTANTIATE)
}  // namespace hyena::cuda
