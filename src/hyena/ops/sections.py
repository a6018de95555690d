"""Sections: rows much longer than their filter are convolved a short transform at a time."""

from __future__ import annotations

import torch

from hyena.ops._layout import transform_length
from hyena.ops._library import has_kernel

# Measured, see docs/kernels.md, "Sections": up to so many taps are faster one by one, and shorter sections no faster.
_FEW_TAPS = 64
_SHORTEST = 256

# Of one thread's work, with AVX-512; fewer with others. Threads cannot share it, they would wait for each other in each
# section: below half as many as there are threads, all of them are faster on whole rows.
_CHANNELS_OF_A_TASK = 16


def section_length(taps: int, channels: int, length: int, device: torch.device) -> int | None:
    """Positions of the sections in which rows meet a causal filter much shorter than they are fastest.

    The size to ask of :func:`hyena.ops.filter_spectrum` for :func:`hyena.ops.gated_conv` and
    :func:`hyena.ops.recurrence` with ``sectioned=True``.

    Args:
        taps: of the filters.
        channels: filters' channels.
        length: of the longest row.

    Returns:
        None where the whole row at once, or tap by tap, is faster, or no kernel takes sections.
    """
    # A traced graph has the one way that serves any length.
    if torch.compiler.is_compiling() or device.type != "cpu" or not has_kernel("gated_conv", device):
        return None
    if taps <= _FEW_TAPS or 2 * -(-channels // _CHANNELS_OF_A_TASK) < torch.get_num_threads():
        return None
    size = transform_length(max(taps, _SHORTEST))
    return size if 2 * size <= length else None
