"""Operators whose filter has few taps: one call mixes tap by tap, and gives what the definition does."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch

from helpers import oracle
from hyena import HyenaOperator, ops
from hyena.filters import ExplicitFilter

D = 6


@pytest.mark.parametrize(
    ("taps", "length", "options", "direct"),
    [
        (7, 40, {}, True),
        (7, 40, {"filter_groups": 2}, True),
        (7, 40, {"causal": False}, True),
        (7, 40, {"order": 1, "value_filter": True}, True),
        (7, 5, {}, True),
        (60, 70, {}, False),
        (7, 40, {"order": 3}, False),
    ],
)
def test_which_call_it_is(
    taps: int, length: int, options: dict[str, Any], direct: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    op = HyenaOperator(D, 80, filter=partial(ExplicitFilter, taps=taps), dtype=torch.float64, **options)
    u, mask = torch.randn(2, length, D, dtype=torch.float64), torch.rand(2, length) < 0.7
    calls: list[str] = []
    for name in ("recurrence", "direct_recurrence"):
        own = getattr(ops, name)
        monkeypatch.setattr(ops, name, lambda *a, own=own, name=name: calls.append(name) or own(*a))
    y = op(u, mask)
    kernel = ops.has_kernel("direct_recurrence", u.device)
    assert calls == ["direct_recurrence" if direct and kernel else "recurrence"]
    z, h = op.in_proj(u), op.conv.matrix_taps(length)
    want = oracle.recurrence_of_z(
        z, op.short.weight, op.short.bias, h, op.conv.bias, mask, order=op.order, causal=op.causal
    )
    torch.testing.assert_close(y, op.out_proj(want), rtol=0, atol=1e-11)


@pytest.mark.parametrize("training", [False, True], ids=["eval", "training"])
def test_as_one_part_after_the_other(training: bool) -> None:
    """Gradients of every weight and of the input."""
    torch.manual_seed(0)
    op = HyenaOperator(D, 80, filter=partial(ExplicitFilter, taps=7), dtype=torch.float64).train(training)
    u = torch.randn(2, 50, D, dtype=torch.float64, requires_grad=True)
    leaves = [u, *op.parameters()]

    def gradients() -> tuple[torch.Tensor, ...]:
        return torch.autograd.grad(op(u).square().sum(), leaves)

    got = gradients()
    hook = op.short.register_forward_hook(lambda module, inputs, y: None)
    for g, want in zip(got, gradients(), strict=True):
        torch.testing.assert_close(g, want, rtol=1e-9, atol=1e-9)
    hook.remove()
