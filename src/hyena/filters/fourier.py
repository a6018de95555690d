"""Filters by their lowest frequencies, as in the Fourier neural operator (Li et al. 2020, arXiv 2010.08895).

Dimensions: F filters, G filter channels, m frequencies.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from hyena import ops
from hyena.filters._exponentials import response
from hyena.filters._initial import empty, fill
from hyena.filters._tied import unrounded
from hyena.filters.base import Filter, check_extension, check_sizes


class FourierFilter(Filter):
    """A filter whose lowest ``m`` Fourier coefficients are the parameters (arXiv 2010.08895, equation 4).

    ``h_t = Re sum_(k<m) R_k exp(2 pi i k t / U)`` for all lags ``t``, of period ``U``. The operator of the paper is
    periodic in the row: it is this one on a ring. Here nothing wraps around. ``R`` starts as complex normal numbers,
    scaled so that each filter has norm 1. Steps are in tiles: these modes never fade.

    Weights: ``R`` ``(F, G, m, 2)``, real and imaginary parts; the state dict has the period too.

    Args:
        channels: G.
        l_max: most taps that may be asked for.
        num_filters: F.
        modes: m, at most ``U // 2 + 1``, beyond which frequencies repeat.
        period: ``U``, ``l_max`` if missing, or ``2 l_max - 1`` of a two-sided filter: as many as there are lags.
        causal: lags from 0 on; otherwise two-sided.

    Raises:
        ValueError: a size below 1, or more modes than the period has frequencies.
    """

    period: Tensor

    def __init__(
        self,
        channels: int,
        l_max: int,
        num_filters: int = 1,
        *,
        modes: int | None = None,
        period: int | None = None,
        causal: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(channels, l_max, num_filters, causal=causal)
        period = (l_max if causal else 2 * l_max - 1) if period is None else period
        check_sizes(period=period)
        most = period // 2 + 1
        modes = min(64, most) if modes is None else modes
        check_sizes(modes=modes)
        if modes > most:
            raise ValueError(f"a period of {period} positions has {most} frequencies, fewer than modes={modes}")
        self.num_modes, self._period = modes, int(period)
        at: dict[str, Any] = {"device": device, "dtype": self.weight_dtype(dtype)}
        self.R = nn.Parameter(torch.empty(num_filters, channels, modes, 2, **at))
        self.register_buffer("period", torch.empty((), **at))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draws the coefficients again, and restores the period that the filter was made with."""
        fill(self.period, empty(self.period).fill_(self._period))
        r = empty(self.R).normal_()
        # Orthogonal waves: over a period, each has half its coefficient's energy, but for the constant and Nyquist's.
        energy = 0.5 * r.square().sum(-1)
        share = energy.clone()
        share[..., 0] = r[..., 0, 0].square()
        if 2 * (self.num_modes - 1) == self._period:
            share[..., -1] = r[..., -1, 0].square()
        lags = self.l_max if self.causal else 2 * self.l_max - 1
        fill(self.R, r / (lags * share.sum(-1)).sqrt()[..., None, None])

    def forward(self, length: int) -> Tensor:
        """Taps ``(F, length, G)``, two-sided ``(F, 2 * length - 1, G)``.

        Raises:
            ValueError: ``length`` is more than ``l_max``.
        """
        self.check_length(length)
        dtype = ops.compute_dtype(self.R)
        k = torch.arange(self.num_modes, device=self.R.device, dtype=dtype)[None, None]
        with ops.without_autocast(self.R.device):
            angle = 2 * math.pi * k / self.period.to(dtype)
            weight = torch.view_as_complex(self.R.to(dtype).contiguous())
            # At negative lags the waves turn the other way.
            h = response(torch.zeros_like(k), angle, weight, length).transpose(1, 2)
            if self.causal:
                return h
            behind = response(torch.zeros_like(k), -angle, weight, length).transpose(1, 2)
            return torch.cat([behind[:, 1:].flip(1), h], dim=1)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        name = prefix + "period"
        if name in state_dict:
            state_dict[name] = unrounded(state_dict[name], self._period)
        super()._load_from_state_dict(state_dict, prefix, *args)

    @torch.no_grad()
    def channel_axes(self) -> dict[str, int]:
        """See :meth:`Filter.channel_axes`."""
        return {"R": 1}

    def extend(self, l_max: int, mode: str = "continue") -> None:
        """See :meth:`Filter.extend`. ``"continue"`` repeats the period; ``"stretch"`` makes it longer."""
        check_extension(l_max, mode)
        # What was loaded counts, not what the filter was made with.
        period = self._period if self.period.is_meta else round(self.period.item())
        self._period = max(1, round(period * l_max / self.l_max)) if mode == "stretch" else period
        fill(self.period, empty(self.period).fill_(self._period))
        self.l_max = l_max

    def extra_repr(self) -> str:
        period = self._period if self.period.is_meta else self.period.item()
        return f"{super().extra_repr()}, modes={self.num_modes}, period={period:.12g}"
