"""Short convolutions over grids; their definition is tested with the operator that has them."""

from __future__ import annotations

import pytest
import torch

from helpers import grids
from hyena.conv import ShortConvND


@pytest.mark.parametrize("boundary", grids.BOUNDARIES)
@pytest.mark.parametrize("taps", [1, 2, 5])
def test_is_the_sum_over_lags(boundary: str, taps: int) -> None:
    conv, x = ShortConvND(3, 2, taps, boundary=boundary).double(), torch.randn(2, 4, 3, 3, dtype=torch.float64)
    weight = conv.weight.flip((1, 2)).movedim(0, -1)  # by lag, from -(K // 2) on
    missing = 1 - taps % 2
    weight = torch.nn.functional.pad(weight, (0, 0, 0, missing, 0, missing))
    want = grids.conv(x, weight, causal=(False,) * 2, boundary=(boundary,) * 2) + conv.bias
    torch.testing.assert_close(conv(x), want)


def test_compiles_for_any_size() -> None:
    """With sizes that the trace has no number for."""
    conv = ShortConvND(3, 2, boundary=("zero", "reflect"))
    torch._dynamo.reset()
    compiled = torch.compile(conv, fullgraph=True, dynamic=True, backend="aot_eager")
    for space in ((9, 8), (7, 5)):
        leaf, other = (torch.randn(2, *space, 3).requires_grad_() for _ in range(2))
        with torch.no_grad():
            other.copy_(leaf)
        y, want = compiled(leaf), conv(other)
        torch.testing.assert_close(y, want)
        y.square().sum().backward()
        want.square().sum().backward()
        torch.testing.assert_close(leaf.grad, other.grad)
    torch._dynamo.reset()


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match="channels and taps must be at least 1, got 3 and 0"):
        ShortConvND(3, 2, 0)
    with pytest.raises(ValueError, match="'same', 'causal', got 'full'"):
        ShortConvND(3, 2, padding="full")
    with pytest.raises(ValueError, match=r"boundary has 3 entries, .* grid of 2 axes"):
        ShortConvND(3, 2, boundary=("zero",) * 3)
