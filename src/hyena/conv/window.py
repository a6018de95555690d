"""Online convolution with a filter of finite support: a window of the last inputs, whatever the row's length.

Dimensions: B batch, C channels of a convolution, K taps, n new positions.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from hyena import functional
from hyena.conv.online import Online


@dataclasses.dataclass(frozen=True)
class Window(Online):
    """Online form of filters of ``K`` taps; its memory is the last ``K - 1`` inputs.

    Args:
        max_length: positions of the longest row.
        taps: for each filter ``(K, C)``, lags ``0 … K-1``, lag 0 with the input's own weight.
    """

    taps: tuple[Tensor, ...]

    @classmethod
    def of(cls, taps: Tensor, channels: list[int], bias: tuple[Tensor, ...], max_length: int) -> Window:
        """For filters ``taps`` ``(F, K, G)``, convolutions of so many channels, and their inputs' own weights."""
        rows = [taps[i].repeat_interleave(c // taps.size(2), dim=1).clone() for i, c in enumerate(channels)]
        for row, d in zip(rows, bias, strict=True):
            row[0] += d
        return cls(max_length, tuple(rows))

    def allocate(self, batch: int) -> list[Tensor]:
        """For each filter ``(B, K - 1, C)``."""
        return [h.new_zeros(batch, h.size(0) - 1, h.size(1)) for h in self.taps]

    def to(self, device: torch.device | str) -> Window:
        """The same on another device."""
        return Window(self.max_length, tuple(h.to(device) for h in self.taps))

    def extend(self, i: int, memory: Tensor, position: int, x: Tensor) -> Tensor:
        """The next outputs ``(B, n, C)`` of convolution ``i``; see :meth:`hyena.conv.Online.extend`."""
        h = self.taps[i]
        before, n = h.size(0) - 1, x.size(1)
        rows = torch.cat([memory, x], dim=1)
        y = (rows * h.flip(0)).sum(1, keepdim=True) if n == 1 else functional.fft_conv(rows, h)[:, before:]
        memory.copy_(rows[:, n:])
        return y
