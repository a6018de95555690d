#include "launch.cuh"

namespace hyena::cuda {
HYENA_SPECTRUM_PROGRAMS(HYENA_INSTANTIATE)
}  // namespace hyena::cuda
