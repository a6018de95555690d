"""Filters as tables of their taps, for programs.

Dimensions: F filters, G filter channels, K taps.
"""

from __future__ import annotations

import copy
from typing import TypeVar

import torch
from torch import Tensor, nn

from hyena.conv import LongConv
from hyena.filters import HyenaFilter

Module = TypeVar("Module", bound=nn.Module)


class StoredTaps(nn.Module):
    """A filter that has all its taps at hand, zeros at the end included, and gives as many as it is asked for.

    Args:
        taps: ``(F, K, G)``, two-sided ``(F, 2K-1, G)``.
        causal: lags from 0 on; otherwise two-sided.
    """

    def __init__(self, taps: Tensor, causal: bool) -> None:
        super().__init__()
        self.causal = causal
        self.register_buffer("taps", taps)

    def forward(self, length: int) -> Tensor:
        """``(F, length, G)``, two-sided ``(F, 2 * length - 1, G)``."""
        taps: Tensor = self.get_buffer("taps")
        if self.causal:
            return taps[:, :length]
        middle = taps.size(1) // 2
        return taps[:, middle - length + 1 : middle + length]


@torch.no_grad()
def with_stored_taps(model: Module, *, every: bool) -> Module:
    """A copy whose long filters are tables, as far as needed; the model itself if none is.

    A trace with any length takes the FFN of :class:`hyena.filters.HyenaFilter`, but neither complex powers (filters in
    modal form, state spaces) nor a support that a row may be shorter than: those become tables.

    Args:
        model: with :class:`hyena.conv.LongConv` in it.
        every: also filters that can be traced.
    """

    def is_table(conv: LongConv) -> bool:
        if conv.filter is None or getattr(conv.filter, "depends_on_length", False):
            return False
        return every or type(conv.filter) is not HyenaFilter

    if not any(is_table(part) for part in model.modules() if isinstance(part, LongConv)):
        return model
    model = copy.deepcopy(model)
    for part in model.modules():
        if isinstance(part, LongConv) and is_table(part):
            taps = part.matrix_taps(part.l_max)
            missing = (part.l_max if part.causal else 2 * part.l_max - 1) - taps.size(1)
            before = 0 if part.causal else missing // 2
            taps = torch.nn.functional.pad(taps, (0, 0, before, missing - before)).contiguous()
            part.filter = StoredTaps(taps, part.causal).train(part.training)
    return model
