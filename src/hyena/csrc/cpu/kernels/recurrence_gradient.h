// The gradient of any recurrence: hyena::recurrence_backward.
#pragma once

#include "recurrence_kept.h"
#include "recurrence_row.h"
#include "recurrence_sections.h"

namespace hyena {
namespace {

// Where a transform's buffer is no longer than this (bytes), two of them and what RecurrenceKept has beside them are in
// the caches, and it is the fastest.
constexpr int64_t kKeptInCache = int64_t(3) << 17;

template <class T, class IO>
struct RecurrenceGradient {
    const RecurrenceArgs& a;

    void backward() const {
        const Recurrence<T, IO> recurrence(a);
        const int64_t buffer = recurrence.passes.buffer() * 2 * Simd<T>::W * int64_t(sizeof(T));
        if (a.spectra.filters == 1 && recurrence.sections > 1)
            RecurrenceSections<T, IO>(recurrence).backward();
        else if (a.spectra.filters == 1 && buffer > kKeptInCache)
            RecurrenceRow<T, IO>(recurrence).backward();
        else
            RecurrenceKept<T, IO>(recurrence).backward();
    }
};

}  // namespace
}  // namespace hyena
