"""Every exported mixer, compiled, with gradients, at lengths that vary."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from helpers.mixers import CASES, D
from hyena import ops
from hyena.mixers import Mixer

# Of float64, in units of outputs of about 1: transforms and sums in another order.
CLOSE = 1e-11


def rows(*shape: int) -> Tensor:
    return torch.randn(*shape, D, dtype=torch.float64)


def apart(a: Tensor, b: Tensor) -> float:
    return (a - b).abs().max().item()


def check_compiled_training(make: Callable[..., Mixer], lengths: tuple[int, ...], **options: object) -> None:
    """Outputs and gradients of one compiled mixer at several lengths: from the second on, torch traces any length."""
    mixer = make(dtype=torch.float64)
    leaves = [p for p in mixer.parameters() if p.numel()]
    torch._dynamo.reset()
    compiled = torch.compile(mixer, **options)
    for length in lengths:
        u = rows(2, length).requires_grad_()
        results = []
        for call in (compiled, mixer):
            y = call(u)
            results.append([y, *torch.autograd.grad(y.square().sum(), [u, *leaves])])
        for got, want in zip(*results, strict=True):
            assert apart(got, want) < CLOSE * max(1.0, want.abs().max().item()), length
    torch._dynamo.reset()


# The graphs are the same with and without kernels: their ops are not looked into.
ONCE = pytest.mark.skipif(
    not ops.has_kernel("recurrence", torch.device("cpu")), reason="traced as it is with kernels, where it is tested"
)


@ONCE
@pytest.mark.parametrize("name", CASES)
def test_training_compiles_at_several_lengths(name: str) -> None:
    check_compiled_training(CASES[name], (19, 32), fullgraph=True, backend="aot_eager")


@ONCE
@pytest.mark.parametrize("name", ["LinearAttention", "S5"])
def test_training_compiles_to_code_at_several_lengths(name: str) -> None:
    check_compiled_training(CASES[name], (40, 33), fullgraph=True)
