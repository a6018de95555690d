"""Short depthwise convolution over a grid.

Dimensions: B batch, C channels, A axes, K taps of an axis.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from hyena import functional
from hyena.functional.dense import dense_conv
from hyena.functional.grid import check_boundaries

PADDINGS = ("same", "causal")


class ShortConvND(nn.Module):
    """Depthwise convolution of ``K^A`` taps over a grid, centred, or causal along every axis.

    Weights are in the order of positions, as those of ``nn.Conv2d``: the last tap multiplies the latest one.

    Args:
        channels: C.
        axes: A.
        taps: K.
        padding: ``"same"``: the taps are centred on the current position (of an even number, the one before the middle
            is at the current position); ``"causal"``: the last tap of each axis is at the current position.
        boundary: what is beyond the grid, of all axes or of each; see :func:`hyena.functional.fft_conv_nd`.

    Raises:
        ValueError: sizes below 1, or options that there are not.
    """

    def __init__(
        self,
        channels: int,
        axes: int,
        taps: int = 3,
        *,
        padding: str = "same",
        boundary: str | Sequence[str] = "zero",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if channels < 1 or taps < 1:
            raise ValueError(f"channels and taps must be at least 1, got {channels} and {taps}")
        if padding not in PADDINGS:
            raise ValueError(f"padding must be one of {', '.join(map(repr, PADDINGS))}, got {padding!r}")
        self.taps, self.padding, self.boundaries = taps, padding, check_boundaries(boundary, axes)
        self.weight = nn.Parameter(torch.empty(channels, *(taps,) * axes, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.empty(channels, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """``nn.Conv2d``'s initialisation."""
        bound = self.weight[0].numel() ** -0.5
        nn.init.uniform_(self.weight, -bound, bound)
        nn.init.uniform_(self.bias, -bound, bound)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Convolves over the grid.

        Args:
            x: ``(B, *space, C)``.
            mask: ``(B, *space)`` bool, True = keep: applied to ``x`` and to the result, so that the bias does not leak
                into padding.

        Returns:
            ``(B, *space, C)``, in the dtype of ``x``.
        """
        axes = self.weight.dim() - 1
        if axes == 1 and self.boundaries == ("zero",):
            return functional.short_conv(x, self.weight, self.bias, mask, padding=self.padding)
        if mask is not None:
            x = torch.where(mask[..., None], x, 0.0)
        before = self.taps - 1 - (self.taps // 2 if self.padding == "same" else 0)
        weights = (self.weight.to(x.dtype), self.bias.to(x.dtype))
        y = dense_conv(x, *weights, (before,) * axes, self.boundaries).to(x.dtype)
        return y if mask is None else torch.where(mask[..., None], y, 0.0)

    def extra_repr(self) -> str:
        return f"channels={self.weight.size(0)}, taps={self.taps}, padding={self.padding!r}, boundary={self.boundaries}"
