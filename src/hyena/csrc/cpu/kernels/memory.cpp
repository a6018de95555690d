#include "memory.h"

#include <pthread.h>

#include <cstdint>
#include <cstdlib>
#include <mutex>
#include <stdexcept>
#include <string>
#include <vector>
#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace hyena {
namespace {

constexpr size_t kHuge = size_t(2) << 20;

// Memory kept between calls: the buffers of a transform of 64K points on a few threads. What is longer costs little to
// fetch anew beside the work done in it.
constexpr size_t kKept = size_t(64) << 20;

struct Block {
    void* data;
    size_t bytes;
};

size_t rounded(size_t bytes) {
    const size_t unit = bytes >= 2 * kHuge ? kHuge : 4096;
    return (bytes + unit - 1) / unit * unit;
}

std::mutex mutex;  // a constant initialisation: no fork can find it half made
std::vector<Block>& kept_blocks() {
    static auto* blocks = new std::vector<Block>;  // never destroyed: threads may outlive static destruction
    return *blocks;
}
size_t kept_bytes = 0;

// A fork waits until no thread is inside, so that the child finds the lock open and the list whole.
[[maybe_unused]] const int at_fork =
    pthread_atfork([] { mutex.lock(); }, [] { mutex.unlock(); }, [] { mutex.unlock(); });

}  // namespace

void* take_memory(size_t wanted) {
    const size_t bytes = rounded(wanted ? wanted : 1);
    {
        std::lock_guard<std::mutex> lock(mutex);
        auto& blocks = kept_blocks();
        for (size_t i = blocks.size(); i-- > 0;)
            if (blocks[i].bytes == bytes) {
                void* data = blocks[i].data;
                blocks.erase(blocks.begin() + i);
                kept_bytes -= bytes;
                return data;
            }
    }
    void* data = std::aligned_alloc(bytes >= 2 * kHuge ? kHuge : 64, bytes);
    if (!data)
        throw std::runtime_error("hyena: out of memory: a kernel asked for " + std::to_string(bytes) +
                                 " bytes of working memory");
    ask_for_huge_pages(data, bytes);
    return data;
}

void give_back_memory(void* data, size_t wanted) {
    const size_t bytes = rounded(wanted ? wanted : 1);
    std::vector<void*> surplus;
    if (bytes > kKept) {
        surplus.push_back(data);
    } else {
        std::lock_guard<std::mutex> lock(mutex);
        auto& blocks = kept_blocks();
        blocks.push_back({data, bytes});
        kept_bytes += bytes;
        while (kept_bytes > kKept) {  // the longest unused goes first
            surplus.push_back(blocks.front().data);
            kept_bytes -= blocks.front().bytes;
            blocks.erase(blocks.begin());
        }
    }
    for (void* block : surplus) std::free(block);
}

void clear_memory() {
    std::vector<Block> blocks;
    {
        std::lock_guard<std::mutex> lock(mutex);
        blocks.swap(kept_blocks());
        kept_bytes = 0;
    }
    for (const Block& block : blocks) std::free(block.data);
}

void ask_for_huge_pages(void* data, size_t bytes) {
#if defined(__linux__)
    const uintptr_t from = reinterpret_cast<uintptr_t>(data), to = from + bytes;
    const uintptr_t begin = (from + kHuge - 1) / kHuge * kHuge, end = to / kHuge * kHuge;
    if (end >= begin + 2 * kHuge) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#else
    (void)data;
    (void)bytes;
#endif
}

}  // namespace hyena
