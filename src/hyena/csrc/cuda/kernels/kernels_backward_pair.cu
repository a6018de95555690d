// Gradients of convolutions of up to 8K positions, both transforms beside each other.
#include "../device/launch.cuh"
#include "programs.h"

namespace hyena::cuda {
HYENA_PAIR_PROGRAMS(HYENA_INSTANTIATE)
}  // namespace hyena::cuda
