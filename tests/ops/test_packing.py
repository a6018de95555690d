"""Packed rows: offsets, and taking rows apart into padded batches."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from helpers.cases import offsets, rand
from hyena.ops._checks import check_cu_seqlens
from hyena.ops._packing import map_rows, row_bounds


def test_bounds_skip_empty_rows() -> None:
    assert row_bounds(offsets([0, 3, 0, 0, 4, 0]), 7, 4) == [(0, 3), (3, 7)]


@pytest.mark.parametrize("at", [[1, 7], [0, 6], [0, 8], [0, 5, 3, 7]])
def test_offsets_must_rise_from_zero_to_the_end(at: list[int]) -> None:
    with pytest.raises(ValueError, match=rf"rise from 0 to the packed length 7, got \[{at[0]}, .*…{at[-1]}"):
        row_bounds(torch.tensor(at), 7, 9)


def test_a_row_too_long_names_both_numbers() -> None:
    with pytest.raises(ValueError, match=r"a row of 5 positions, more than the 4 .* pass max_seqlen=5 or more"):
        row_bounds(offsets([2, 5]), 7, 4)


@pytest.mark.parametrize(
    "bad",
    [torch.zeros(2, 2, dtype=torch.int32), torch.zeros(1, dtype=torch.int32), torch.zeros(3), torch.zeros(3).short()],
)
def test_offsets_are_integers_in_a_row(bad: Tensor) -> None:
    shape = str(tuple(bad.shape)).replace("(", r"\(").replace(")", r"\)")
    with pytest.raises(ValueError, match=rf"1-D int32 or int64 .* got {bad.dtype} of shape {shape}"):
        check_cu_seqlens(bad, rand(1, 7, 2))


def test_packed_rows_come_as_one() -> None:
    with pytest.raises(ValueError, match=r"\(1, T, C\); got batch 3"):
        check_cu_seqlens(offsets([7]), rand(3, 7, 2))


@given(sizes=st.lists(st.integers(0, 300), min_size=1, max_size=12).filter(sum))
def test_rows_come_back_in_their_places(sizes: list[int]) -> None:
    """Each row is computed alone, at most doubled by padding, and what is not a row's is zero."""
    total = sum(sizes)
    x, seen = rand(1, total, 2), []

    def reverse(keep: Tensor, rows: Tensor, nothing: None) -> tuple[Tensor, Tensor]:
        assert nothing is None
        assert not rows[~keep].any()
        assert keep.numel() < 2 * keep.sum()
        seen.append(rows.size(0))
        out = torch.full_like(rows, torch.nan)
        for i, n in enumerate(keep.sum(1).tolist()):
            out[i, :n] = rows[i, :n].flip(0)
        return out, keep.sum()

    y, count = map_rows(reverse, (x, None), row_bounds(offsets(sizes), total, 300))
    ends = offsets(sizes).tolist()
    want = torch.cat([x[:, a:b].flip(1) for a, b in pairwise(ends)], dim=1)
    assert torch.equal(y, want)
    assert count == total
    assert sum(seen) == sum(n > 0 for n in sizes)
