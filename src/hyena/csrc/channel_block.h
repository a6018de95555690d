// How many channels lie next to each other in a sequence in channel blocks, (B, C / 16, L, 16); CHANNEL_BLOCK in
// ops/_layout.py.
#pragma once

#include <cstdint>

namespace hyena {

// As many numbers as the longest vector has, so that a vector is in one block.
constexpr int64_t kChannelBlock = 16;

}  // namespace hyena
