"""Arrays longer than the caches, which the CPU's kernels write past them, beside FFTs of doubled rows in float64.

Explicit matrices would take minutes here.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from helpers import gated_conv, recurrence, short_conv
from helpers.cases import Tier, compare, rand
from hyena import ops
from hyena.ops._extension import EXTENSION

pytestmark = pytest.mark.skipif(EXTENSION.instructions is None, reason="no kernel here")
KERNEL = Tier("cpu", "cpu")

# Transforms of 50,000 points; 96 channels of them in float32 are more than 16 MiB.
LENGTH, CHANNELS = 50_000, 96


def long_conv(x: Tensor, h: Tensor) -> Tensor:
    """``(B, L, C)`` with a filter of taps ``(K, C)``."""
    n = x.size(1) + h.size(0)
    return torch.fft.irfft(torch.fft.rfft(x, n, dim=1) * torch.fft.rfft(h, n, dim=0), n, dim=1)[:, : x.size(1)]


def short(z: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    padded = F.pad(z.transpose(1, 2), (weight.size(1) - 1, 0))
    return F.conv1d(padded, weight[:, None], bias, groups=z.size(2)).transpose(1, 2)


def mixing(z: Tensor, weight: Tensor, bias: Tensor | None, h: Tensor, d: Tensor, mask: None = None) -> Tensor:
    first, *gates, value = short(z, weight, bias).chunk(z.size(2) // d.size(1), dim=2)
    for i, gate in enumerate(reversed(gates)):
        value = gate * value
        value = long_conv(value, h[i]) + d[i] * value
    return first * value


def gated(v: Tensor, h: Tensor, d: Tensor, pre: Tensor, post: Tensor) -> Tensor:
    return post * (long_conv(pre * v, h) + d * pre * v)


@pytest.mark.parametrize(("batch", "channels", "order"), [(1, CHANNELS + 5, 2), (2, CHANNELS, 3)])
def test_recurrence(batch: int, channels: int, order: int) -> None:
    x = recurrence.inputs(batch, LENGTH // batch, channels, order=order)
    compare(recurrence.convolve, mixing, x, rand(batch, LENGTH // batch, channels), KERNEL, torch.float32)


def test_gated_conv() -> None:
    x = gated_conv.inputs(1, LENGTH, CHANNELS, LENGTH, CHANNELS)
    compare(gated_conv.convolve, gated, x, rand(1, LENGTH, CHANNELS), KERNEL, torch.float32)


def test_few_taps() -> None:
    x = recurrence.inputs(1, LENGTH, CHANNELS, taps=40)
    compare(recurrence.mix, mixing, x, rand(1, LENGTH, CHANNELS), KERNEL, torch.float32)


def test_short_conv() -> None:
    x = short_conv.inputs(1, LENGTH, CHANNELS, 3)
    del x["mask"]
    compare(ops.short_conv, short, x, rand(1, LENGTH, CHANNELS), KERNEL, torch.float32)
