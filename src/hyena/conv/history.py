"""Online form of filters of which every row has its own: inputs are kept, and outputs are dot products with them.

Dimensions: B batch, C channels of a convolution, G filter channels, F long filters, T room of a state, n new positions.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from hyena import functional
from hyena.conv.online import Online


@dataclasses.dataclass(frozen=True)
class History(Online):
    """Online form for taps ``(B, T, G)`` that belong to rows, in the memory beside the inputs that they meet.

    So rows are reordered, copied and saved with their filters. A step costs as many products as there were
    positions, the next ``n`` positions a transform of all that came.

    Args:
        max_length: T.
        bias: for each filter ``(C,)``, the weight of the input itself.
    """

    bias: tuple[Tensor, ...]

    def allocate(self, batch: int) -> list[Tensor]:
        """Raises ValueError: the taps are not here; see :meth:`remember`."""
        raise ValueError(f"memory for {batch} rows begins with the rows' own taps: History.remember(taps) makes it")

    def remember(self, taps: Tensor) -> list[Tensor]:
        """For each filter its memory ``(B, T, C + G)`` before the first input, with taps ``(B, F, K <= T, G)``."""
        batch, _, count, groups = taps.shape
        memory = [taps.new_zeros(batch, self.max_length, d.numel() + groups) for d in self.bias]
        for i, d in enumerate(self.bias):
            memory[i][:, :count, d.numel() :] = taps[:, i]
        return memory

    def extend(self, i: int, memory: Tensor, position: int, x: Tensor) -> Tensor:
        """The next outputs ``(B, n, C)`` of convolution ``i``; see :meth:`hyena.conv.Online.extend`."""
        n, channels = x.size(1), x.size(2)
        past = position + n
        memory[:, position:past, :channels] = x
        inputs, taps = memory[:, :past, :channels], memory[:, :past, channels:]
        if n > 1:
            return functional.fft_conv(inputs, taps, self.bias[i])[:, position:]
        groups = taps.size(2)
        y = torch.einsum("btgc,btg->bgc", inputs.unflatten(2, (groups, -1)), taps.flip(1)).flatten(1)
        return (y + self.bias[i] * x[:, 0])[:, None]

    def to(self, device: torch.device | str) -> History:
        """The same on another device."""
        return History(self.max_length, tuple(d.to(device) for d in self.bias))
