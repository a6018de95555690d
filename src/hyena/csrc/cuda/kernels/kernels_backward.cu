// Gradients of rows that fit one block.
#include "../device/launch.cuh"
#include "programs.h"

namespace hyena::cuda {
HYENA_BACKWARD_PROGRAMS(HYENA_INSTANTIATE)
}  // namespace hyena::cuda
