"""Lengths that models are trained with, which a GPU has kernels of their own for, in the dtypes of training."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from helpers import gated_conv, recurrence
from helpers.cases import Tier, place, rand, run
from helpers.gpu import errors
from helpers.tolerances import kernel_limit
from hyena import ops

FALLBACK = "fallback"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("short", [0, 3], ids=["gates", "three taps"])
@pytest.mark.parametrize("length", [512, 1000, 2048, 4090, 4096, 8192, 16384])
def test_output_and_every_gradient(tier: Tier, length: int, short: int, dtype: torch.dtype) -> None:
    """About as wrong as the fallback's, beside float64; three rows of five channels, which do not fill blocks."""
    if short == 0:
        x, fn = gated_conv.inputs(3, length, 5, length, 5), gated_conv.convolve
    else:
        x, fn = recurrence.inputs(3, length, 5, short=short, z_bias=True), recurrence.convolve
    fn, dy = partial(fn, size=ops.transform_length(length)), rand(3, length, 5)
    judge, wide = Tier(FALLBACK, tier.device), {"h": torch.float32}
    with judge():
        exact = run(fn, place(x, tier, torch.float64), dy.to(tier.device))
        half, g = place(x, tier, dtype, **wide), dy.to(tier.device, dtype)
        plain = run(fn, half, g)
    with tier():
        got = run(fn, half, g)
    limits = {k: 2 * kernel_limit(e, got.dtypes()[k]) for k, e in errors(plain, exact).items()}
    wrong = {k: (e, limits[k]) for k, e in errors(got, exact).items() if not e <= limits[k]}
    assert not wrong, wrong
