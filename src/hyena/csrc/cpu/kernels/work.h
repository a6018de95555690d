// Sharing work between threads, and the memory they work in.
#pragma once

#include <cstdint>

#include "../simd/simd.h"
#include "kernels.h"
#include "memory.h"

namespace hyena {
namespace {

// Working memory for the length of a scope, not initialised.
template <class T>
class Memory {
  public:
    explicit Memory(int64_t count) : bytes_(size_t(count) * sizeof(T)), data_(static_cast<T*>(take_memory(bytes_))) {}
    ~Memory() { give_back_memory(data_, bytes_); }
    Memory(const Memory&) = delete;
    Memory& operator=(const Memory&) = delete;
    T* get() const { return data_; }

  private:
    size_t bytes_;
    T* data_;
};

template <class F>
void run(const Pool& pool, int64_t count, F&& f) {
    if (count <= 1 || pool.threads <= 1) {
        for (int64_t i = 0; i < count; ++i) f(i);
        return;
    }
    pool.run(count, [](void* context, int64_t i) { (*static_cast<F*>(context))(i); }, &f);
}

// Several workers inside one task: `over(n, f)` cuts [0, n) into a fixed number of parts and calls f(begin, end, part),
// so that sums over parts are the same from run to run.
struct Team {
    Pool pool;
    int parts;

    template <class F>
    void over(int64_t n, F&& f) const {
        if (parts == 1) return f(int64_t(0), n, 0);
        run(pool, parts, [&](int64_t part) { f(n * part / parts, n * (part + 1) / parts, int(part)); });
    }
};

// f(first, count, part) for tiles of a row, shared by the team.
template <class F>
void each_tile(int64_t length, int64_t tile, const Team& team, F&& f) {
    team.over((length + tile - 1) / tile, [&](int64_t first, int64_t end, int part) {
        for (int64_t i = first; i < end; ++i) {
            const int64_t left = length - i * tile;
            f(i * tile, left < tile ? left : tile, part);
        }
    });
}

// Runs `count` independent tasks, each with its worker's memory (made by `make(parts)`): a task a thread where there
// are enough of them, or tasks have too many steps for `teams`; else all threads on one task after the other.
template <class Make, class Task>
void share(const Pool& pool, int64_t count, Make&& make, Task&& task, bool teams = true) {
    if (count < pool.threads && teams) {
        auto memory = make(pool.threads);
        for (int64_t i = 0; i < count; ++i) task(i, memory, Team{pool, pool.threads});
        return;
    }
    int64_t next = 0;
    run(pool, pool.threads, [&](int64_t) {
        int64_t i = __atomic_fetch_add(&next, 1, __ATOMIC_RELAXED);
        if (i >= count) return;
        auto memory = make(1);
        for (; i < count; i = __atomic_fetch_add(&next, 1, __ATOMIC_RELAXED)) task(i, memory, Team{pool, 1});
    });
}

}  // namespace
}  // namespace hyena
