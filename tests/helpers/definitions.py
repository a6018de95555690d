"""Comparing a mixer with its definition: outputs, and gradients of the input and of every parameter."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

CLOSE = 1e-9  # of the largest entry, in float64


def assert_close(got: Tensor, want: Tensor, name: str = "", close: float = CLOSE) -> None:
    """Raises if the two are further apart than ``close`` times the largest entry."""
    assert got.shape == want.shape, name
    apart, scale = (got - want).abs().max().item(), want.abs().max().item()
    assert apart <= close * max(scale, 1e-3), f"{name}: {apart} apart, of {scale}"


def assert_defined(mixer: nn.Module, definition: Callable[[Tensor], Tensor], length: int, batch: int = 2) -> None:
    """Raises unless ``mixer(u)`` is ``definition(u)``, with all gradients, for random float64 rows."""
    u = torch.randn(batch, length, mixer.d_model, dtype=torch.float64, requires_grad=True)
    names, weights = zip(*((n, p) for n, p in mixer.named_parameters() if p.numel()), strict=True)
    got, want = mixer(u), definition(u)
    assert_close(got, want, "output")
    probe = torch.randn_like(got)
    grads = [torch.autograd.grad((y * probe).sum(), (u, *weights), materialize_grads=True) for y in (got, want)]
    for name, a, b in zip(("u", *names), *grads, strict=True):
        assert_close(a, b, name)
