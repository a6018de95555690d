#include "launch.cuh"

namespace hyena::cuda {
HYENA_SPLIT_PROGRAMS(HYENA_INSTANTIATE)
}  // namespace hyena::cuda
