"""One vector for each row, of its positions that are kept.

Dimensions: B batch, L length, D channels.
"""

from __future__ import annotations

import torch
from torch import Tensor


def pool(x: Tensor, mask: Tensor | None, how: str) -> Tensor:
    """Computes ``(B, L, D) -> (B, D)``.

    Args:
        x: ``(B, L, D)``.
        mask: ``(B, L)``, True or 1 = keep.
        how: ``"mean"`` over the kept positions, or ``"last"`` of them.
    """
    return _mean(x, mask) if how == "mean" else _last(x, mask)


def _mean(x: Tensor, mask: Tensor | None) -> Tensor:
    """Mean over the kept positions: ``(B, L, D) -> (B, D)``."""
    if mask is None:
        return x.mean(1)
    keep = mask.bool()[..., None]
    return torch.where(keep, x, torch.zeros((), dtype=x.dtype, device=x.device)).sum(1) / keep.sum(1).clamp_min(1)


def _last(x: Tensor, mask: Tensor | None) -> Tensor:
    """The last kept position of each row: ``(B, L, D) -> (B, D)``."""
    if mask is None:
        return x[:, -1]
    at = mask.size(1) - 1 - mask.int().flip(1).argmax(1)  # (B,): argmax is the first of several largest
    return x[torch.arange(x.size(0), device=x.device), at]
