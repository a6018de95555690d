"""HyenaAttention, its inputs and its masks for the tests of it, and what it must compute."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from helpers import oracle
from hyena.integrations.attention import HyenaAttention

E, M, L = 8, 4, 12
SIZES = [12, 7, 1]
CLOSE = {"rtol": 0, "atol": 2e-6}
EXACT = {"rtol": 0, "atol": 1e-12}


def attention(**kwargs) -> HyenaAttention:
    return HyenaAttention(E, M, **{"l_max": 16, "batch_first": True} | kwargs)


def batch(dtype: torch.dtype = torch.float32, device: str = "cpu") -> Tensor:
    return torch.randn(3, L, E, generator=torch.Generator().manual_seed(1)).to(device, dtype)


def ignored(side: str) -> Tensor:
    """(3, L) bool, True = ignore, rows of SIZES positions."""
    at, size = torch.arange(L), torch.tensor(SIZES)[:, None]
    return at >= size if side == "right" else at < L - size


def as_float(ignore: Tensor) -> Tensor:
    return torch.zeros(ignore.shape).masked_fill(ignore, -torch.inf)


def row(x: Tensor, i: int, side: str) -> Tensor:
    """What is not padding of row i, as a batch of one."""
    return x[i : i + 1, : SIZES[i]] if side == "right" else x[i : i + 1, L - SIZES[i] :]


def causal_mask(kind: str, length: int = L) -> Tensor:
    above = torch.ones(length, length, dtype=torch.bool).triu(1)
    return above if "bool" in kind else as_float(above)


def by_definition(attn: HyenaAttention, x: Tensor, ignore: Tensor | None = None) -> Tensor:
    """The operator's equations in float64 with explicit matrices."""
    op = copy.deepcopy(attn.operator).double()
    z = op.in_proj(x.double())
    y = oracle.recurrence_of_z(
        z,
        op.short.weight,
        op.short.bias,
        op.conv.filter(x.size(1)),
        op.conv.bias,
        None if ignore is None else ~ignore,
        order=op.order,
        causal=op.causal,
        num_heads=op.num_heads,
    )
    return op.out_proj(y)


def window() -> Tensor:
    return causal_mask("float").masked_fill(torch.ones(L, L, dtype=torch.bool).tril(-3), -torch.inf)
