"""Which entries of a weight belong to which process: every one to exactly one, wherever it is cut."""

from __future__ import annotations

from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import torch
from hypothesis import given
from hypothesis import strategies as st

from hyena.distributed.splits import Split, equal, runs


def processes(rank: int, size: int) -> Any:
    return SimpleNamespace(rank=rank, size=size)


@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 5), st.integers(0, 1), st.data())
def test_parts_and_their_shards_make_up_the_whole(size: int, parts: int, each: int, axis: int, data: Any) -> None:
    length = size * parts * each
    whole = torch.arange(3 * length).view((3, length) if axis == 1 else (length, 3))
    found = torch.full_like(whole, -1)
    for rank in range(size):
        split = equal(length, processes(rank, size), axis, parts)
        part = split.take(whole)
        assert split.whole_shape(part) == list(whole.shape)
        cuts = sorted(data.draw(st.lists(st.integers(0, parts * each), max_size=3)))
        for start, stop in zip([0, *cuts], [*cuts, parts * each], strict=True):
            for at, to, count in split.rectangles(start, stop):
                place = found.narrow(axis, to, count)
                assert (place == -1).all()
                place.copy_(part.narrow(axis, at, count))
    assert torch.equal(found, whole)


@given(st.sets(st.integers(0, 30)))
def test_runs(entries: set[int]) -> None:
    found = runs(sorted(entries))
    assert [i for r in found for i in r] == sorted(entries)
    assert all(a.stop < b.start for a, b in pairwise(found))


def test_a_row_of_each_part() -> None:
    assert equal(12, processes(1, 2), 0, 3).ranges[1] == (range(2, 4), range(6, 8), range(10, 12))
    assert list(Split(0, 12, ((range(2),), (range(4, 6),)), processes(1, 2)).rectangles(1, 2)) == [(1, 5, 1)]
