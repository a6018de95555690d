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

// Working memory that is kept between calls: the buffers of a transform of 64K points on a few threads. What is longer
// costs little to fetch anew beside the work done in it.
constexpr size_t kWorking = size_t(64) << 20;

// Memory of results that is kept at most. New pages are zeroed by the system, a fifth of the time of a training step
// whose tensors are long: where it can take kept pages back by itself (MADV_FREE), an eighth of its memory.
size_t most_of_results() {
    static const size_t most = [] {
#if defined(__linux__) && defined(MADV_FREE)
        const long pages = sysconf(_SC_PHYS_PAGES), each = sysconf(_SC_PAGESIZE);
        if (pages > 0 && each > 0) return size_t(pages) / 8 * size_t(each);
#endif
        return kWorking;
    }();
    return most;
}

// From here on (bytes) the system is told that it may have a kept result's pages back.
constexpr size_t kLent = size_t(16) << 20;

struct Block {
    void* data;
    size_t bytes;
};

size_t rounded(size_t bytes) {
    const size_t unit = bytes >= 2 * kHuge ? size_t(64) << 10 : 4096;  // whole pages of any system
    return (bytes + unit - 1) / unit * unit;
}

// Huge pages where they are long: a column of a long transform touches a page a point, and new memory costs one fault a
// page. malloc would keep more for their alignment than it gives back.
void* new_memory(size_t bytes) {
#if defined(__linux__)
    if (bytes >= 2 * kHuge) {
        void* all = mmap(nullptr, bytes + kHuge, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (all == MAP_FAILED) return nullptr;
        char *begin = static_cast<char*>(all), *end = begin + bytes + kHuge;
        char* data = begin + (kHuge - reinterpret_cast<uintptr_t>(begin) % kHuge) % kHuge;
        if (data > begin) munmap(begin, data - begin);
        if (end > data + bytes) munmap(data + bytes, end - data - bytes);
        madvise(data, bytes, MADV_HUGEPAGE);
        return data;
    }
#endif
    return std::aligned_alloc(64, bytes);
}

void release(const Block& block) {
#if defined(__linux__)
    if (block.bytes >= 2 * kHuge) {
        munmap(block.data, block.bytes);
        return;
    }
#endif
    std::free(block.data);
}

// Memory of one kind: what is kept, the longest unused first, and how much is in use.
struct Store {
    const bool results;
    std::vector<Block> blocks{};
    size_t kept = 0, used = 0, most_used = 0;

    // How much may be kept beside what is in use and `wanted` bytes. Of results a step of training has several sizes,
    // not all at once: half as much again as was in use.
    size_t room(size_t wanted) const {
        if (!results) return kWorking;
        const size_t soon = used + wanted, peak = std::max(most_used, soon);
        return std::min(most_of_results(), peak + peak / 2 - soon);
    }
    void* take(size_t bytes) {
        for (size_t i = blocks.size(); i-- > 0;)
            if (blocks[i].bytes == bytes) {
                void* data = blocks[i].data;
                blocks.erase(blocks.begin() + i);
                kept -= bytes;
                note_use(bytes);
                return data;
            }
        return nullptr;
    }
    void note_use(size_t bytes) {
        used += bytes;
        most_used = std::max(most_used, used);
    }
    // What there is no room for; it is the caller's to release.
    std::vector<Block> surplus(size_t wanted) {
        const size_t most = room(wanted);
        size_t count = 0;
        for (; kept > most; ++count) kept -= blocks[count].bytes;
        const std::vector<Block> taken(blocks.begin(), blocks.begin() + count);
        blocks.erase(blocks.begin(), blocks.begin() + count);
        return taken;
    }
};

std::mutex mutex;  // a constant initialisation: no fork can find it half made
Store& store(bool results) {
    static auto* stores = new Store[2]{{false}, {true}};  // never destroyed: threads may outlive static destruction
    return stores[results];
}

// A fork waits until no thread is inside, so that the child finds the lock open and the lists whole.
[[maybe_unused]] const int at_fork =
    pthread_atfork([] { mutex.lock(); }, [] { mutex.unlock(); }, [] { mutex.unlock(); });

void* take(bool results, size_t wanted) {
    const size_t bytes = rounded(wanted ? wanted : 1);
    std::vector<Block> old;
    {
        std::lock_guard<std::mutex> lock(mutex);
        if (void* data = store(results).take(bytes)) return data;
        old = store(results).surplus(bytes);
    }
    for (const Block& block : old) release(block);
    void* data = new_memory(bytes);
    if (!data) {
        clear_memory();
        data = new_memory(bytes);
    }
    if (!data)
        throw std::runtime_error("hyena failed: out of memory: a kernel asked for " + std::to_string(bytes) +
                                 " bytes of working memory");
    std::lock_guard<std::mutex> lock(mutex);
    store(results).note_use(bytes);
    return data;
}

void give_back(bool results, void* data, size_t wanted) {
    const size_t bytes = rounded(wanted ? wanted : 1);
#if defined(__linux__) && defined(MADV_FREE)
    if (results && bytes >= kLent) madvise(data, bytes, MADV_FREE);
#endif
    std::vector<Block> old;
    {
        std::lock_guard<std::mutex> lock(mutex);
        Store& there = store(results);
        there.used -= bytes;
        there.blocks.push_back({data, bytes});
        there.kept += bytes;
        old = there.surplus(0);
    }
    for (const Block& block : old) release(block);
}

}  // namespace

void* take_memory(size_t bytes) { return take(false, bytes); }
void give_back_memory(void* data, size_t bytes) { give_back(false, data, bytes); }
void* take_result(size_t bytes) { return take(true, bytes); }
void give_back_result(void* data, size_t bytes) { give_back(true, data, bytes); }

void clear_memory() {
    std::vector<Block> blocks;
    {
        std::lock_guard<std::mutex> lock(mutex);
        for (const bool results : {false, true}) {
            Store& there = store(results);
            blocks.insert(blocks.end(), there.blocks.begin(), there.blocks.end());
            there.blocks.clear();
            there.kept = 0;
            there.most_used = there.used;
        }
    }
    for (const Block& block : blocks) release(block);
}

}  // namespace hyena
