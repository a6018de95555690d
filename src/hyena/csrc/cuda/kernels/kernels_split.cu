// Rows that do not fit one block.
#include "../device/launch.cuh"
#include "programs.h"

namespace hyena::cuda {
HYENA_SPLIT_PROGRAMS(HYENA_INSTANTIATE)
}  // namespace hyena::cuda
