"""No value and no gradient from the future; two-sided operators see both sides.

A transform spreads its rounding errors over the whole row, so what is zero for an explicit sum is zero here to some eps
of the arithmetic, float32 for every dtype below it, times the size of what was changed. ``LEAK`` is that bound. In half
precision an output so close to the border between two numbers may fall on the other side; few do.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from helpers.cases import rand
from helpers.operators import CONFIGS, D, build

LEAK = {dtype: 32 * torch.finfo(torch.float32).eps for dtype in (torch.float32, torch.bfloat16, torch.float16)}
LEAK[torch.float64] = 32 * torch.finfo(torch.float64).eps
DTYPE = pytest.mark.parametrize("dtype", LEAK, ids=str)
CAUSAL = pytest.mark.parametrize("config", [name for name, settings in CONFIGS.items() if settings.get("causal", True)])
TWO_SIDED = pytest.mark.parametrize("config", [name for name, s in CONFIGS.items() if not s.get("causal", True)])
LENGTH = 40


def jacobian_blocks(y: Tensor, u: Tensor, at: int) -> tuple[Tensor, Tensor]:
    """Gradients with respect to positions from ``at`` on: of the outputs before ``at``, and of the others."""
    past = torch.autograd.grad(y[:, :at].float().sum(), u, retain_graph=True)[0]
    later = torch.autograd.grad(y[:, at:].float().sum(), u)[0]
    return past[:, at:], later[:, at:]


@CAUSAL
@DTYPE
@pytest.mark.parametrize("at", [1, 17, 39])
def test_no_gradient_from_the_future(config: str, dtype: torch.dtype, at: int, device: str) -> None:
    m, u = build(config).to(device, dtype), rand(2, LENGTH, D).to(device, dtype).requires_grad_()
    leak, size = jacobian_blocks(m(u), u, at)
    assert leak.abs().max() <= LEAK[dtype] * size.abs().max()


@CAUSAL
@DTYPE
@pytest.mark.parametrize("mode", ["train", "eval"])
def test_no_value_from_the_future(config: str, dtype: torch.dtype, mode: str, device: str) -> None:
    m, u = build(config).to(device, dtype).train(mode == "train"), rand(2, LENGTH, D).to(device, dtype)
    with torch.no_grad():
        y = m(u)
        for at in (1, 17, 39):
            changed = u.clone()
            changed[:, at:] = rand(2, LENGTH - at, D, seed=at).to(u)
            difference = (m(changed) - y).abs()
            assert difference[:, at:].max() > 0
            past = difference[:, :at]
            rounding = 2 * torch.finfo(dtype).eps * y.abs().max().item()
            assert past.max() <= LEAK[dtype] * difference.max().item() + rounding
            if dtype in (torch.bfloat16, torch.float16):
                assert (past > 0).float().mean() < 0.02


@TWO_SIDED
@DTYPE
def test_two_sided_operators_see_both_sides(config: str, dtype: torch.dtype, device: str) -> None:
    m, u = build(config).to(device, dtype), rand(1, LENGTH, D).to(device, dtype).requires_grad_()
    (g,) = torch.autograd.grad(m(u)[:, 20].float().sum(), u)
    assert g.abs().amax((0, 2)).min() > 0


def test_a_causal_output_sees_all_of_its_past() -> None:
    m, u = build("default"), rand(1, LENGTH, D).float().requires_grad_()
    (g,) = torch.autograd.grad(m(u)[:, -1].sum(), u)
    assert g.abs().amax((0, 2)).min() > 0


def test_a_longer_row_begins_as_a_shorter_one() -> None:
    m, u = build("default").double(), rand(1, 90, D)
    whole = m(u)
    for length in (1, 2, 31, 64, 65, 89):
        torch.testing.assert_close(m(u[:, :length]), whole[:, :length], rtol=1e-11, atol=1e-11)
