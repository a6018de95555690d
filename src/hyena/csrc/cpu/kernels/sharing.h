// Rows and groups of channels shared between threads: any order (forward), or one writer for each filter (backward).
#pragma once

#include "spectra.h"
#include "work.h"

namespace hyena {
namespace {

// Runs task(row, block, group, memory, team) for every row and group of channels of a call, each with its worker's
// memory (made by `make(parts)`). Neighbouring tasks share a row, or a group's spectrum. Rows in sections are no work
// for `teams`, which would wait for each other in each section.
template <class T, class Make, class Task>
void share_rows(const Sequence& seq, const Blocks<T>& blocks, bool teams, bool by_row, Make&& make, Task&& task) {
    int64_t groups = 0;
    for (int64_t b = 0; b < blocks.count(); ++b) groups += blocks.groups(b);
    const int64_t rows = seq.num_rows;
    const auto one = [&](int64_t i, auto& memory, const Team& team) {
        int64_t block = 0, group = by_row ? i % groups : i / rows;
        while (group >= blocks.groups(block)) group -= blocks.groups(block++);
        task(seq.rows[by_row ? i / groups : i % rows], block, blocks.group(block, group), memory, team);
    };
    share(seq.pool, groups * rows, make, one, teams);
}

// Runs task(row, block, group, memory, team, overwrite) likewise, the rows and groups of one block of spectra one after
// the other, since they all add to its gradient; `overwrite` where nothing has been added yet, nor a zero been written.
template <class T, class Make, class Task>
void share_blocks(const Sequence& seq, const Blocks<T>& blocks, bool teams, const Spectra& dspectra, Make&& make,
                  Task&& task) {
    const auto one = [&](int64_t block, auto& memory, const Team& team) {
        bool overwrite = start_gradient(dspectra, blocks, block, seq.num_rows > 0);
        for (int64_t i = 0; i < blocks.groups(block); ++i)
            for (int64_t r = 0; r < seq.num_rows; ++r) {
                task(seq.rows[r], block, blocks.group(block, i), memory, team, overwrite);
                overwrite = false;
            }
    };
    share(seq.pool, blocks.count(), make, one, teams);
}

}  // namespace
}  // namespace hyena
