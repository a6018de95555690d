"""Online convolution with a filter of finite support: a window of the last inputs, whatever the row's length.

Dimensions: B batch, C channels of a convolution, K taps, n new positions.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from hyena import functional, ops
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
        if n == 1:
            return ops.window_step_(x, None, None, h, memory)
        rows = torch.cat([memory, x], dim=1)
        y = functional.fft_conv(rows, h)[:, before:]
        memory.copy_(rows[:, n:])
        return y

    def extend_gated(
        self, i: int, memory: Tensor, position: int, x: Tensor, pre: Tensor | None, post: Tensor | None
    ) -> Tensor:
        """``post * extend(…, pre * x)``; see :meth:`hyena.conv.Online.extend_gated`."""
        if x.size(1) == 1:
            return ops.window_step_(x, pre, post, self.taps[i], memory)
        return super().extend_gated(i, memory, position, x, pre, post)

    def step_short_and_gated(
        self, z: Tensor, weight: Tensor, bias: Tensor | None, last: Tensor, memory: Tensor
    ) -> Tensor:
        """See :meth:`hyena.conv.Online.step_short_and_gated`."""
        return ops.gated_window_step_(z, weight, bias, last, self.taps[0], memory)
