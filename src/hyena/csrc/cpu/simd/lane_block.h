// How many channels lie next to each other in an array in channel blocks, (R, C / 16, L, 16).
#pragma once

#include <cstdint>

namespace hyena {

// As many numbers as the longest vector has, so that a vector is in one block.
constexpr int64_t kLaneBlock = 16;

}  // namespace hyena
