"""Filters whose taps are the parameters.

Dimensions: F filters, G filter channels, K taps.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hyena import ops
from hyena.filters._initial import empty, fill
from hyena.filters.base import Filter, check_extension_of_taps, check_sizes


class ExplicitFilter(Filter):
    """A filter of ``K`` trained taps for each channel: a depthwise convolution, as in CNNs and Evo 2's short filters.

    ``forward(length)`` returns ``min(length, K)`` taps; later ones are zero (``support``). Taps start as normal numbers
    with variance ``1 / K``, so that a filter of white input leaves it about as strong as it was.

    Args:
        channels: G.
        l_max: most positions of a row.
        num_filters: F.
        taps: K, 1 to ``l_max``; ``l_max`` if missing.
        causal: lags ``0 … K-1``; otherwise lags ``-(K-1) … K-1``.

    Raises:
        ValueError: sizes below 1, or more taps than ``l_max``.
    """

    def __init__(
        self,
        channels: int,
        l_max: int,
        num_filters: int = 1,
        *,
        taps: int | None = None,
        causal: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(channels, l_max, num_filters, causal=causal)
        taps = l_max if taps is None else taps
        check_sizes(taps=taps)
        if taps > l_max:
            raise ValueError(f"taps={taps} reach further than rows of l_max={l_max} positions: use at most {l_max}")
        self.support = taps
        self.weight = nn.Parameter(torch.empty(self.taps_shape(taps), device=device, dtype=self.weight_dtype(dtype)))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws the taps again."""
        fill(self.weight, empty(self.weight).normal_(std=self.weight.size(1) ** -0.5))

    def forward(self, length: int) -> Tensor:
        """Taps ``(F, n, G)``, two-sided ``(F, 2 n - 1, G)``, with ``n = min(length, K)``.

        Raises:
            ValueError: ``length`` is more than ``l_max``.
        """
        self.check_length(length)
        n, taps = self.taps_shape(length)[1], self.weight.size(1)
        start = 0 if self.causal else (taps - n) // 2
        return self.weight[:, start : start + n].to(ops.compute_dtype(self.weight))

    def channel_axes(self) -> dict[str, int]:
        """See :meth:`Filter.channel_axes`."""
        return {"weight": 2}

    def extend(self, l_max: int, mode: str = "continue") -> None:
        """See :meth:`Filter.extend`. Taps are counted in positions: ``"stretch"`` is not possible."""
        check_extension_of_taps(self, l_max, mode)
        self.l_max = l_max

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, taps={self.support}"
