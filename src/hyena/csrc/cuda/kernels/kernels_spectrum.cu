// Spectra of filters.
#include "../device/launch.cuh"
#include "programs.h"

namespace hyena::cuda {
HYENA_SPECTRUM_PROGRAMS(HYENA_INSTANTIATE)
}  // namespace hyena::cuda
