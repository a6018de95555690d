#include "memory.h"

#include <pthread.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <mutex>
#include <stdexcept>
#include <string>
#include <vector>
#if defined(__linux__)
#include <sys/mman.h>
#include <unistd.h>
#endif

namespace hyena {
namespace {

constexpr size_t kHuge = size_t(2) << 20;

// What is always kept: the buffers of a transform of 64K points on a few threads.
constexpr size_t kLeast = size_t(64) << 20;

// What is kept at most. New pages are zeroed by the system, a fifth of the time of a training step whose tensors are
// long: where it can take kept pages back by itself (MADV_FREE), an eighth of its memory.
size_t most_kept() {
    static const size_t most = [] {
        size_t bytes = kLeast;
#if defined(__linux__) && defined(MADV_FREE)
        const long pages = sysconf(_SC_PHYS_PAGES), each = sysconf(_SC_PAGESIZE);
        if (pages > 0 && each > 0) bytes = std::max(bytes, size_t(pages) / 8 * size_t(each));
#endif
        return bytes;
    }();
    return most;
}

// From here on (bytes) the system is told that it may have kept pages back.
constexpr size_t kLent = size_t(16) << 20;

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
size_t kept_bytes = 0, used_bytes = 0, most_used = 0;

// Takes the longest unused blocks off the list until no more is kept than may be; they are for the caller to free.
std::vector<void*> surplus() {
    const size_t room = std::max(kLeast, most_used + most_used / 2 - used_bytes), most = std::min(most_kept(), room);
    auto& blocks = kept_blocks();
    std::vector<void*> taken;
    size_t count = 0;
    for (; kept_bytes > most; ++count) {
        taken.push_back(blocks[count].data);
        kept_bytes -= blocks[count].bytes;
    }
    blocks.erase(blocks.begin(), blocks.begin() + count);
    return taken;
}

// A fork waits until no thread is inside, so that the child finds the lock open and the list whole.
[[maybe_unused]] const int at_fork =
    pthread_atfork([] { mutex.lock(); }, [] { mutex.unlock(); }, [] { mutex.unlock(); });

}  // namespace

void* take_memory(size_t wanted) {
    const size_t bytes = rounded(wanted ? wanted : 1);
    std::vector<void*> old;
    {
        std::lock_guard<std::mutex> lock(mutex);
        auto& blocks = kept_blocks();
        used_bytes += bytes;
        most_used = std::max(most_used, used_bytes);
        for (size_t i = blocks.size(); i-- > 0;)
            if (blocks[i].bytes == bytes) {
                void* data = blocks[i].data;
                blocks.erase(blocks.begin() + i);
                kept_bytes -= bytes;
                return data;
            }
        old = surplus();
    }
    for (void* block : old) std::free(block);
    void* data = std::aligned_alloc(bytes >= 2 * kHuge ? kHuge : 64, bytes);
    if (!data) {
        std::lock_guard<std::mutex> lock(mutex);
        used_bytes -= bytes;
        throw std::runtime_error("hyena: out of memory: a kernel asked for " + std::to_string(bytes) +
                                 " bytes of working memory");
    }
    ask_for_huge_pages(data, bytes);
    return data;
}

void give_back_memory(void* data, size_t wanted) {
    const size_t bytes = rounded(wanted ? wanted : 1);
#if defined(__linux__) && defined(MADV_FREE)
    if (bytes >= kLent) madvise(data, bytes, MADV_FREE);
#endif
    std::vector<void*> old;
    {
        std::lock_guard<std::mutex> lock(mutex);
        used_bytes -= bytes;
        kept_blocks().push_back({data, bytes});
        kept_bytes += bytes;
        old = surplus();
    }
    for (void* block : old) std::free(block);
}

void clear_memory() {
    std::vector<Block> blocks;
    {
        std::lock_guard<std::mutex> lock(mutex);
        blocks.swap(kept_blocks());
        kept_bytes = 0;
        most_used = used_bytes;
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
