"""Convolutions of few taps over a grid, tap by tap, by torch's own depthwise convolution.

Dimensions: B batch, C channels, K taps of an axis.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from hyena.functional.layout import extended

# Most taps in all that are applied one by one, without and with gradients. Measured on a CPU in float32 at 16 to 128
# positions along an axis and 128 channels: a forward pass is twice as fast as by transforms at 121 taps, and ten times
# at 25; with gradients the two are even from 25 to 49 taps on.
_TAPS, _TAPS_WITH_GRADIENTS = 121, 25

_CONVS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


def is_dense(x: Tensor, h: Tensor) -> bool:
    """Whether a grid ``(B, *space, C)`` meets a filter ``(*K, G)`` faster tap by tap than by transforms."""
    axes = x.dim() - 2
    if axes == 1 or h.dim() != axes + 1 or x.device.type != "cpu" or x.dtype == torch.float64:
        return False
    trains = torch.is_grad_enabled() and (x.requires_grad or h.requires_grad)
    return math.prod(h.shape[:-1]) <= (_TAPS_WITH_GRADIENTS if trains else _TAPS)


def dense_conv(
    x: Tensor, weight: Tensor, bias: Tensor | None, before: Sequence[int], boundaries: Sequence[str]
) -> Tensor:
    """``y[s] = sum_j weight[j] x[s + j - before] + bias``, channel by channel.

    Args:
        x: ``(B, *space, C)``.
        weight: ``(C, *K)``, in the dtype of ``x``, as ``bias``.
        bias: ``(C,)``.
        before: taps of each axis that are at earlier positions.
        boundaries: what is beyond the grid along each axis.

    Returns:
        ``(B, *space, C)``.
    """
    pads = [0, 0]
    for dim, (first, boundary) in enumerate(zip(before, boundaries, strict=True), 1):
        rest = weight.size(dim) - 1 - first
        pads[2:2] = [first, rest] if boundary == "zero" else [0, 0]
        if boundary != "zero":
            x = extended(x, dim, first, rest, boundary)
    x = F.pad(x, pads) if any(pads) else x
    if _is_symbolic(x):
        return _sum_of_taps(x, weight, bias)
    return _CONVS[len(before)](x.movedim(-1, 1), weight[:, None], bias, groups=x.size(-1)).movedim(1, -1)


def _is_symbolic(x: Tensor) -> bool:
    """Whether a trace has no number for a size, with which torch 2.13's compiler cannot lay out a convolution."""
    if not torch.compiler.is_compiling():
        return False
    # Imported here because it costs a third of a second, and only tracing needs it.
    from torch.fx.experimental.symbolic_shapes import has_static_value

    return not all(has_static_value(n) for n in x.shape)


def _sum_of_taps(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The same of a padded grid as products and sums, which a compiler makes one loop of."""
    counts = weight.shape[1:]
    y = torch.zeros((), dtype=x.dtype, device=x.device) if bias is None else bias
    for at, index in enumerate(itertools.product(*(range(count) for count in counts))):
        part = x
        for dim, (i, count) in enumerate(zip(index, counts, strict=True), 1):
            part = part.narrow(dim, i, x.size(dim) - count + 1)
        y = y + weight.flatten(1)[:, at] * part
    return y
