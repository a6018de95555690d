"""The damped multi-dimensional exponential moving average of Mega (Ma et al. 2022, arXiv 2209.10655, section 3.1).

Dimensions: F filters, R rows of weights (F, two-sided 2 F), G filter channels, m dimensions of the average.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hyena.filters.base import check_sizes
from hyena.filters.diagonal import DiagonalFilter, Terms, Weights


class EMA(DiagonalFilter):
    """The damped multi-dimensional EMA of Mega: a sum of real exponentials (arXiv 2209.10655, equations 7 and 8).

    ``h_t = sum_k p_k beta_k q_k^t gamma_k / sqrt(m)`` with ``p = sigmoid(delta)`` the weight of what is new and
    ``q = 1 - p sigmoid(alpha)`` how much of the past stays. Poles are real, so that steps are a recurrence of ``m``
    real states.

    Weights: ``delta``, ``alpha``, ``beta`` and ``gamma``, each ``(R, G, m)``. ``delta`` and ``alpha`` start as normal
    numbers of deviation 0.2, ``beta`` at 1 and -1 in turns with noise of 0.02, ``gamma`` as normal numbers, scaled so
    that each filter has norm 1 (the released code leaves them as they are).

    Args:
        channels: G.
        l_max: most positions of a row.
        num_filters: F.
        modes: m (``ndim`` in the released code).
        truncation: taps from this lag on are zero; the filter then steps from a window.
        causal: lags from 0 on; otherwise two-sided: the average over the past and one over the future, which have
            weights of their own and both count the present.

    Raises:
        ValueError: a size below 1.
    """

    linear = "gamma"
    by_channel = ("delta", "alpha", "beta", "gamma")

    def __init__(
        self,
        channels: int,
        l_max: int,
        num_filters: int = 1,
        *,
        modes: int = 16,
        truncation: int | None = None,
        causal: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(channels, l_max, num_filters, modes, causal=causal)
        if truncation is not None:
            check_sizes(truncation=truncation)
        self.support = truncation
        each = (self._rows, channels, modes)
        self._make(dict.fromkeys(("delta", "alpha", "beta", "gamma"), each), device, dtype)

    def _start(self, weights: Weights) -> Weights:
        weights["delta"].normal_(std=0.2)
        weights["alpha"].normal_(std=0.2)
        weights["beta"].normal_(std=0.02)
        weights["beta"][..., ::2] += 1
        weights["beta"][..., 1::2] -= 1
        weights["gamma"].normal_()
        return weights

    def _terms(self, weights: Weights) -> Terms:
        new = torch.sigmoid(weights["delta"])
        # A q that rounds to 0 has no logarithm; the smallest normal number is as good.
        gone = (new * torch.sigmoid(weights["alpha"])).clamp_max(1 - torch.finfo(new.dtype).eps)
        weight = new * weights["beta"] * weights["gamma"] * self.num_modes**-0.5
        return Terms(-torch.log1p(-gone), None, weight)

    def _both_directions(self, h: Tensor) -> Tensor:
        """Taps ``(R, n, G)`` as what ``forward`` returns; both directions have a tap of lag 0."""
        if self.causal:
            return h
        ahead, behind = h.split(self.num_filters)
        return torch.cat([behind[:, 1:].flip(1), ahead[:, :1] + behind[:, :1], ahead[:, 1:]], dim=1)

    def extra_repr(self) -> str:
        return super().extra_repr() + ("" if self.support is None else f", truncation={self.support}")
