// Choices that can be made while the program runs, to measure them on a device without building again.
//
// A library built with HYENA_TUNE exports hyena_tune(name, value); any other has the constants that are named where
// they are used, and nothing of this. tests/csrc/test_tuning.py sets every one of them on the host.
#pragma once

#include <cstdint>

namespace hyena::cuda {

enum class Choice {
    kRowsEach,    // rows that a block of a convolution takes one after the other
    kThreads,     // of a block, 64 … 512, multiples of 32; more than kManyThreads is another kernel
    kRoundBytes,  // scratch memory of a round over long rows
    kCarveout,    // percent of a multiprocessor's fast memory to use as shared memory
    kSlices,      // of the rows, in the gradient of a convolution
    kRadices,     // which way 8192 and 16384 points are cut up, see radices_of
    kFixed,       // 0: no kernels that are compiled for one transform, dtype and number of taps
    kCount,
};

constexpr int64_t kUntuned = -1;

#if defined(HYENA_TUNE)
// What hyena_tune has set, `otherwise` if nothing.
int64_t tuned(Choice which, int64_t otherwise = kUntuned);
#else
constexpr int64_t tuned(Choice, int64_t otherwise = kUntuned) { return otherwise; }
#endif

}  // namespace hyena::cuda
