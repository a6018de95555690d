// Programs without a transform.
#include "../device/launch.cuh"
#include "programs.h"

namespace hyena::cuda {
HYENA_ELEMENTWISE_PROGRAMS(HYENA_INSTANTIATE)
}  // namespace hyena::cuda
