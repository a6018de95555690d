"""The two-sided implicit filter of Monarch Mixer: an FFN for each direction, with one sine's frequency for both.

Dimensions: F filters, C channels, K taps.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from hyena import ops
from hyena.filters.base import check_flags
from hyena.filters.ffn import SineLayers
from hyena.filters.implicit import HyenaFilter


class PairedFilter(HyenaFilter):
    """A :class:`HyenaFilter` whose lags of both signs come from two FFNs (Monarch Mixer, arXiv 2310.12109, section 4).

    ``h_t = Window(t) FFN(t)`` for lags ``t >= 0`` and ``h_{-1-t} = Window(t) FFN'(t)`` for the others: time begins anew
    at lag -1. Both FFNs have layers of their own and one trained frequency. A causal one is a :class:`HyenaFilter`.

    Args:
        channels: C.
        l_max: most taps of a side that may be asked for.
        num_filters: F.
        causal: lags from 0 on; otherwise two-sided.
        emb_dim, width, inner_layers, freq, shift, time_unit, encoding: as :class:`HyenaFilter`.
    """

    def __init__(
        self,
        channels: int,
        l_max: int,
        num_filters: int = 1,
        *,
        causal: bool = True,
        emb_dim: int = 33,
        width: int = 64,
        inner_layers: int = 2,
        freq: float | None = None,
        shift: float = 0.0,
        time_unit: int | None = None,
        encoding: nn.Module | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        at: dict[str, Any] = {"device": device, "dtype": dtype}
        sizes: dict[str, Any] = {"inner_layers": inner_layers, "freq": freq}
        more: dict[str, Any] = {"emb_dim": emb_dim, "width": width, "shift": shift, "time_unit": time_unit}
        check_flags(causal=causal)
        super().__init__(channels, l_max, num_filters, causal=True, encoding=encoding, **sizes, **more, **at)
        self.causal = causal
        at["dtype"] = self.weight_dtype(dtype)
        self.behind: SineLayers | None = None
        if not causal:
            sizes["freq"] = self.ffn.initial_freq
            self.behind = SineLayers(emb_dim, width, num_filters * channels, **sizes, **at)
            self._scale_after_resets(self.behind)

    def reset_parameters(self) -> None:
        """Initialises every part again, and scales both sides of the filters to unit norm."""
        self._scales = False
        if self.behind is not None:
            self.behind.reset_parameters()
        super().reset_parameters()

    def _ffns(self) -> list[Any]:
        behind = getattr(self, "behind", None)  # not yet, in the first half of the constructor
        return super()._ffns() + ([] if behind is None else [behind])

    def channel_axes(self) -> dict[str, int]:
        """See :meth:`Filter.channel_axes`."""
        found = super().channel_axes()
        return found | {"behind.out.weight": 0} if found and self.behind is not None else found

    def forward(self, length: int) -> Tensor:
        """Taps ``(F, length, C)``, two-sided ``(F, 2 * length - 1, C)``; see :meth:`HyenaFilter.forward`."""
        ahead = self.one_side(length)
        if self.behind is None or length == 1:
            return ahead
        device, dtype = ahead.device, ahead.dtype
        with ops.without_autocast(device):
            features, t = self.encoding(length - 1, device, dtype)
            behind = self.behind(features, self.ffn.freq) * self.window(t)
        behind = behind.view(length - 1, -1, self.channels).transpose(0, 1)
        return torch.cat([behind.flip(1), ahead], dim=1)
