"""Padding masks as every mixer and model takes them.

Dimensions: B batch, L length.
"""

from __future__ import annotations

import torch
from torch import Tensor


def keep_from_tokenizer(mask: Tensor, shape: torch.Size) -> Tensor:
    """A tokenizer's ``attention_mask`` ``(B, L)``, True or 1 = keep, as bool.

    Raises:
        ValueError: another shape than ``shape``, or floating point.
    """
    if mask.shape != shape or mask.is_floating_point():
        raise ValueError(
            f"mask must be bool or integer, of shape {tuple(shape)}, True or 1 where a token is kept; got {mask.dtype} "
            f"of shape {tuple(mask.shape)}"
        )
    return mask.bool()
