// Direct convolutions on tensor cores.
#include "../device/launch.cuh"
#include "programs.h"

namespace hyena::cuda {
HYENA_DIRECT_PROGRAMS(HYENA_INSTANTIATE)
}  // namespace hyena::cuda
