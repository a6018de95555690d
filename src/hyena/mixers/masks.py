"""Padding masks: ``(B, L)``, True where a position is kept.

Dimensions: B batch, L length.
"""

from __future__ import annotations

import torch
from torch import Tensor


def keep_from_tokenizer(mask: Tensor, shape: torch.Size, *, floats: bool = False) -> Tensor:
    """Converts a tokenizer's ``attention_mask`` to bool.

    Args:
        mask: ``(B, L)`` bool, or integers that are 0 (padding) or 1 (keep).
        shape: ``(B, L)`` of the tokens.
        floats: whether these numbers may be floating point.

    Returns:
        ``(B, L)`` bool, True = keep.

    Raises:
        ValueError: another shape, floating point, or a number other than 0 and 1: some tokenizers number packed rows
            that way, which are passed as ``cu_seqlens``; masks that are added to scores have 0 where a token is kept.
            In a compiled graph it is an assertion, a ``RuntimeError``.
    """
    if mask.shape != shape or (mask.is_floating_point() and not floats) or mask.is_complex():
        raise ValueError(
            f"mask must be bool or integer, of shape {tuple(shape)}, True or 1 where a token is kept; got {mask.dtype} "
            f"of shape {tuple(mask.shape)}"
        )
    if mask.dtype == torch.bool:
        return mask
    keep = mask != 0
    if mask.device.type != "meta":
        kind, hint = "an integer", "pass packed rows as cu_seqlens"
        if mask.is_floating_point():
            kind, hint = "a floating point", "a mask that is added to scores is another, pass (mask == 0)"
        good, message = (keep == mask).all(), f"{kind} mask holds 1 where a token is kept and 0 for padding"
        if torch.compiler.is_compiling():
            torch._assert_async(good, message)
        elif not good:
            raise ValueError(f"{message}; got {mask[keep != mask][0].item()}: {hint}")
    return keep
