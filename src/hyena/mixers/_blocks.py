"""Rows cut into blocks when the next positions arrive anywhere in a block, and in each row elsewhere.

A row has read ``count`` positions; the last ``count % size`` of them are in a block that is not full and are held.

Dimensions: B batch, n new positions, S positions of a block, C blocks, X anything.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from hyena.mixers.rows import take


def cut(x: Tensor, size: int) -> Tensor:
    """``(B, L, X)`` from the row's start as ``(B, C, S, X)``, zeros at the end."""
    return F.pad(x, (0, 0, 0, -x.size(1) % size)).unflatten(1, (-1, size))


def join(held: Tensor, count: Tensor, new: Tensor) -> Tensor:
    """Blocks that begin with what is held and go on with what is new.

    Args:
        held: ``(B, S, X)``, of which the first ``count % S`` are there.
        count: ``(B,)``.
        new: ``(B, n, X)``.

    Returns:
        ``(B, C, S, X)``, for the fewest blocks that hold ``S - 1`` old positions and n new ones; zeros at the end.
    """
    size, n = held.size(1), new.size(1)
    total = -(-(size - 1 + n) // size) * size
    at = torch.arange(total, device=new.device) - (count % size)[:, None]
    old = F.pad(held, (0, 0, 0, total - size))
    arrived = torch.where((at < n)[..., None], take(new, at.clamp(0, n - 1)), 0.0)
    return torch.where((at < 0)[..., None], old, arrived).unflatten(1, (-1, size))


def pick(blocks: Tensor, count: Tensor, n: int) -> Tensor:
    """What stands where :func:`join` put the new positions: ``(B, C, S, X)`` to ``(B, n, X)``."""
    at = torch.arange(n, device=blocks.device) + (count % blocks.size(2))[:, None]
    return take(blocks.flatten(1, 2), at)


def hold(blocks: Tensor, full: Tensor) -> Tensor:
    """The block ``full[b]`` of each row, ``(B, S, X)``; zeros behind the last."""
    return take(F.pad(blocks, (0, 0, 0, 0, 0, 1)), full[:, None])[:, 0]
