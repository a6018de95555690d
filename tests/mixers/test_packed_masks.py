"""Packed rows with a mask on top, and on the ways that compiled code takes: every mixer."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from helpers.cases import offsets
from helpers.mixers import CASES, D
from hyena.mixers import Mixer, rows

SIZES = [20, 1, 0, 13, 7]


@pytest.fixture(params=CASES)
def make(request: pytest.FixtureRequest) -> Callable[..., Mixer]:
    return CASES[request.param]


@pytest.mark.parametrize("at_once", [False, True])
def test_a_mask_acts_inside_packed_rows(make, at_once: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in each row alone; ``at_once`` is how a compiled graph and a GPU pad the rows, all to the longest."""
    mixer = make(dtype=torch.float64).eval()
    if at_once:
        monkeypatch.setattr(rows, "in_groups", lambda u: False)
    u = torch.randn(1, sum(SIZES), D, dtype=torch.float64)
    keep = torch.rand(1, sum(SIZES)) < 0.7
    keep[0, 0] = keep[0, 20] = True
    u[~keep] = torch.nan
    y = mixer(u, keep, cu_seqlens=offsets(SIZES), max_seqlen=20)
    start = 0
    for size in SIZES:
        part, kept = slice(start, start + size), keep[:, start : start + size]
        if kept.any():
            want = mixer(u[:, part], kept)
            torch.testing.assert_close(y[:, part][kept], want[kept], rtol=0, atol=1e-11)
        start += size
