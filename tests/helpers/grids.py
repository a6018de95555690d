"""Convolutions over grids by definition, in float64, lag by lag, and what the grid tests are run over."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

BOUNDARIES = ("zero", "circular", "reflect")


def source(position: int, size: int, boundary: str) -> int | None:
    """Which position of an axis is seen at ``position``, inside the grid or beyond it."""
    if 0 <= position < size:
        return position
    if boundary == "zero":
        return None
    if boundary == "circular":
        return position % size
    while not 0 <= position < size:  # to and fro between the ends
        if size == 1:
            return 0
        position = -position if position < 0 else 2 * (size - 1) - position
    return position


def moved(x: Tensor, dim: int, lag: int, boundary: str) -> Tensor:
    """``x[s - lag]`` along ``dim``."""
    size = x.size(dim)
    at = [source(s - lag, size, boundary) for s in range(size)]
    rows = [x.select(dim, 0) * 0 if i is None else x.select(dim, i) for i in at]
    return torch.stack(rows, dim)


def conv(
    x: Tensor,
    h: Tensor,
    d: Tensor | None = None,
    *,
    causal: Sequence[bool],
    boundary: Sequence[str],
) -> Tensor:
    """``y[b, s, c] = sum_l h[l, c] x[b, s - l, c] + d[c] x[b, s, c]``; h (*K, G) or (B, *K, G)."""
    x, axes = x.double(), len(boundary)
    own = h if h.dim() == axes + 2 else h[None]
    own = own.double().repeat_interleave(x.size(-1) // h.size(-1), dim=-1)
    counts = own.shape[1:-1]
    firsts = [0 if one else -((count - 1) // 2) for one, count in zip(causal, counts, strict=True)]
    y = torch.zeros_like(x) if d is None else d.double() * x
    for index in itertools.product(*(range(count) for count in counts)):
        part = x
        for axis, (i, first) in enumerate(zip(index, firsts, strict=True)):
            part = moved(part, axis + 1, first + i, boundary[axis])
        tap = own[(slice(None), *index)]  # (B or 1, C)
        y = y + tap.view(-1, *(1,) * axes, tap.size(-1)) * part
    return y


def product(factors: Sequence[Tensor]) -> Tensor:
    """Taps of a grid from those of each axis, ``(K, G)``."""
    result = factors[0]
    for h in factors[1:]:
        result = result.unsqueeze(-2) * h
    return result
