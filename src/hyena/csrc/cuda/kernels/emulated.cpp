// All programs for the host, in place of kernels_*.cu.
#include "../device/emulated.h"
#include "programs.h"

namespace hyena::cuda {
HYENA_CONVOLVE_PROGRAMS(HYENA_INSTANTIATE)
HYENA_BACKWARD_PROGRAMS(HYENA_INSTANTIATE)
HYENA_SPLIT_PROGRAMS(HYENA_INSTANTIATE)
HYENA_SPECTRUM_PROGRAMS(HYENA_INSTANTIATE)
HYENA_ELEMENTWISE_PROGRAMS(HYENA_INSTANTIATE)
}  // namespace hyena::cuda
