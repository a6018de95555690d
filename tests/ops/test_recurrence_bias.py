"""The projection's bias, which ``hyena::recurrence`` adds to ``z`` before all else."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from helpers.cases import DTYPES, Tier, compare, place, rand
from helpers.recurrence import convolve, inputs, matrices


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("mask", ["none", "random"])
@pytest.mark.parametrize("short", [1, 3, 4, 6])
@pytest.mark.parametrize(("order", "value_filter"), [(1, False), (1, True), (2, False), (3, False)])
def test_a_bias_of_z(tier: Tier, dtype: torch.dtype, order: int, value_filter: bool, short: int, mask: str) -> None:
    """It is nowhere but in the row, and where positions are kept: also among the taps that reach over an edge."""
    wide, dy = torch.promote_types(dtype, torch.float32), rand(2, 37, 3)
    x = inputs(2, 37, 3, order=order, value_filter=value_filter, short=short, mask=mask, z_bias=True)
    # A kernel may add up its gradient, that of z, as it was rounded.
    own = dtype if short == 4 else wide
    for layout in ("contiguous", "channel_major"):
        compare(convolve, partial(matrices, order=order), x, dy, tier, dtype, {"z": layout}, h=wide, z_bias=own)


def test_a_bias_of_z_is_not_rounded_to_its_dtype(tier: Tier) -> None:
    """It is added in the arithmetic's precision: a sum of z and bias in bfloat16 would lose half of it."""
    x = inputs(1, 9, 2, z_bias=True)
    x["z"], x["z_bias"] = 1024 + x["z"].sign(), x["z_bias"] - 1024
    x["z"] = x["z"].to(torch.bfloat16).double()
    x["z_bias"] = x["z_bias"].float().double()
    wide = {name: torch.float32 for name in x if name != "z"}
    placed = place(x, tier, torch.bfloat16, **wide)
    with tier():
        got = convolve(**placed)
    want = matrices(**x, order=2)
    torch.testing.assert_close(got.double().cpu(), want, rtol=0.02, atol=0.02 * float(want.abs().max()))
