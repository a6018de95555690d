// Memory of the kernels and of their long results: taken for a call, kept for the next.
#pragma once

#include <cstddef>

namespace hyena {

// At least `bytes` bytes at a multiple of 64, not initialised; huge pages where they are long. Thread-safe, and safe to
// call in the child of a fork. Throws std::runtime_error with the number of bytes where there is no memory.
void* take_memory(size_t bytes);

// Gives back what take_memory(bytes) returned; 64 MiB are kept.
void give_back_memory(void* data, size_t bytes);

// The same for a result's memory. It is kept as long as what is kept and what is in use are together no more than one
// and a half times what was in use at once, and what is kept no more than an eighth of the machine's memory. The system
// may take the pages of long blocks back whenever it needs them.
void* take_result(size_t bytes);
void give_back_result(void* data, size_t bytes);

// Results from here on (bytes) are worth keeping: malloc keeps shorter ones itself.
constexpr size_t kLongResult = size_t(4) << 20;

// Frees what is kept for the next call.
void clear_memory();

}  // namespace hyena
