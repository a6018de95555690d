"""Filters as rational transfer functions (Parnichkun et al. 2024, arXiv 2405.06147).

Dimensions: F filters, R rows of weights (F, two-sided 2 F), G filter channels, n order, K taps.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from hyena import ops
from hyena.filters._initial import empty, fill, to_unit_norm, whole
from hyena.filters._tied import TiedToLength
from hyena.filters.base import check_sizes


class TransferFunctionFilter(TiedToLength):
    """A rational transfer function, ``(b_0 + … + b_n z^-n) / (1 + a_1 z^-1 + … + a_n z^-n)`` (arXiv 2405.06147, eq. 5).

    The taps are the inverse transform of its values at the ``l_max`` frequencies of the row, so that a call costs
    ``O(l_max log l_max)`` whatever the order, and the state is never formed. They satisfy the recurrence
    ``h_t = -sum_j a_j h_(t-j)`` from ``t = n + 1`` on, with a numerator that has the row's end folded in: weights
    belong to a length, which is saved with them, and are converted for another. The denominator is not constrained: a
    root at one of the row's frequencies has no finite taps. Steps are in tiles.

    Weights: ``a`` ``(R, G, n)`` and ``b`` ``(R, G, n + 1)``. ``a`` starts small, with all roots well inside the circle,
    ``b`` as normal numbers, scaled so that each filter has norm 1. (The paper's ``a`` starts at 0.)

    Args:
        channels: G.
        l_max: most taps that may be asked for.
        num_filters: F.
        order: n, less than ``l_max``; 16 if missing, or what ``l_max`` allows.
        causal: lags from 0 on; otherwise two-sided, the taps of lags ``-1, -2, …`` from weights of their own.

    Raises:
        ValueError: a size below 1, or an order that is not below ``l_max``.
    """

    def __init__(
        self,
        channels: int,
        l_max: int,
        num_filters: int = 1,
        *,
        order: int | None = None,
        causal: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(channels, l_max, num_filters, causal=causal)
        self.order = min(16, max(1, l_max - 1)) if order is None else order
        check_sizes(order=self.order)
        self._check_order(l_max)
        at: dict[str, Any] = {"device": device, "dtype": self.weight_dtype(dtype)}
        self.a = nn.Parameter(torch.empty(self._rows, channels, self.order, **at))
        self.b = nn.Parameter(torch.empty(self._rows, channels, self.order + 1, **at))
        self._tie(device, dtype)
        self.reset_parameters()

    def _check_order(self, l_max: int) -> None:
        if self.order >= l_max:
            raise ValueError(f"order={self.order} needs rows of at least {self.order + 1} positions, got l_max={l_max}")

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Starts again; every filter has l2 norm 1 then."""
        self._save_length()
        # A sum of magnitudes of at most 1/2 keeps every root inside the circle.
        a, b = empty(self.a).uniform_(-0.5 / self.order, 0.5 / self.order), empty(self.b).normal_()
        if not self.b.is_meta:
            dtype = ops.compute_dtype(b)
            energy = _taps(a.to(dtype), b.to(dtype), self.l_max).square().sum(-1)
            b *= to_unit_norm(energy, self.num_filters)[..., None]
        fill(self.a, a)
        fill(self.b, b)

    def forward(self, length: int) -> Tensor:
        """Taps ``(F, length, G)``, two-sided ``(F, 2 * length - 1, G)``.

        Raises:
            ValueError: ``length`` is more than ``l_max``.
        """
        self.check_length(length)
        dtype = ops.compute_dtype(self.b)
        with ops.without_autocast(self.b.device):
            h = _taps(self.a.to(dtype), self.b.to(dtype), self.l_max)[..., :length]
        return self._both_directions(h.transpose(1, 2))

    def _convert(self, old: int, new: int) -> None:
        self._check_order(new)
        if self.b.is_meta:
            return
        a = whole(self.a).double()
        h = _taps(a, whole(self.b).double(), old)[..., :new]
        taps = list(h.unbind(-1))
        for _ in range(old, new):  # the recurrence goes on
            taps.append(-(a * torch.stack(taps[-self.order :][::-1], dim=-1)).sum(-1))
        h = torch.stack(taps, dim=-1)
        # The numerator of these taps on a ring of the new length.
        b = h[..., : self.order + 1].clone()
        for j in range(1, self.order + 1):
            b += a[..., j - 1 : j] * h.roll(j, dims=-1)[..., : self.order + 1]
        fill(self.b, b.to(self.b.dtype))

    def channel_axes(self) -> dict[str, int]:
        """See :meth:`Filter.channel_axes`."""
        return {"a": 1, "b": 1}

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, order={self.order}"


def _taps(a: Tensor, b: Tensor, length: int) -> Tensor:
    below = torch.cat([torch.ones_like(a[..., :1]), a], dim=-1)
    return torch.fft.irfft(torch.fft.rfft(b, n=length) / torch.fft.rfft(below, n=length), n=length)
