"""Sequences in channel blocks, ``(B, C / 16, L, 16)``."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hyena.ops._extension import EXTENSION
from hyena.ops._layout import to_blocks

# How a sequence in blocks may lie in memory.
PLACES = ["contiguous", "view", "sliced", "skipping", "every_second", "offset", "batch_inside"]

of_cpu = pytest.mark.skipif(
    EXTENSION.instructions == "emulated CUDA", reason="sections and matrix products are of a CPU's kernels"
)


def in_blocks(x: Tensor, where: str = "contiguous") -> Tensor:
    """``x`` (B, L, C) in channel blocks, in memory as ``where`` says."""
    view = to_blocks(x)
    if where == "view":
        return view
    if where == "contiguous":
        return view.contiguous()
    b, blocks, length, block = view.shape
    if where == "sliced":  # blocks in the middle of more of them
        to = x.new_full((b, blocks + 3, length, block), torch.nan)[:, 1 : 1 + blocks]
    elif where == "skipping":  # every second position of longer rows
        to = x.new_full((b, blocks, 2 * length, block), torch.nan)[:, :, 1::2]
    elif where == "every_second":  # no stride is 1
        to = x.new_full((b, blocks, length, 2 * block), torch.nan)[..., ::2]
    elif where == "offset":  # an address that no vector load is aligned to
        to = x.new_full((view.numel() + 1,), torch.nan)[1:].view(view.shape)
    elif where == "batch_inside":
        to = x.new_full((blocks, length, b, block), torch.nan).permute(2, 0, 1, 3)
    else:
        raise AssertionError(where)
    return to.copy_(view)
