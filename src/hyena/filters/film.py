"""Implicit filters that a condition changes: one filter for each row of the batch, by FiLM in the filter's FFN.

Dimensions: B batch, F filters (one for each long convolution), C channels, K taps, W width of the FFN, S sine layers, Q
channels of the condition.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from hyena import ops
from hyena.filters._initial import empty, fill
from hyena.filters.base import check_sizes
from hyena.filters.ffn import FilterLinear
from hyena.filters.implicit import HyenaFilter


class FiLM(FilterLinear):
    """A condition's scales and shifts of sine layers, ``(B, Q) -> (B, S, 2, W)`` (Perez et al. 2017, arXiv 1709.07871).

    It has no bias and starts at zero: no condition, a condition of zeros and an untrained layer change nothing.

    Args:
        condition_dim: Q.
        layers: S.
        width: W.
    """

    def __init__(self, condition_dim: int, layers: int, width: int, **at: Any) -> None:
        super().__init__(condition_dim, layers * 2 * width, bias=False, **at)
        self.layers, self.width = layers, width

    def reset_parameters(self) -> None:
        """Starts at zero."""
        fill(self.weight, empty(self.weight).zero_())

    def forward(self, input: Tensor) -> Tensor:
        """``(B, Q) -> (B, S, 2, W)`` in the dtype of ``input``: of each layer what is added to its scale, its shift."""
        return super().forward(input).unflatten(1, (self.layers, 2, self.width))


class FiLMFilter(HyenaFilter):
    """A :class:`HyenaFilter` whose sine layers a condition scales and shifts, so that each row has filters of its own.

    ``sin(freq * ((1 + scale) * (A x + b) + shift))`` in every sine layer, ``scale`` and ``shift`` linear in the
    condition (FiLM, Perez et al. 2017, arXiv 1709.07871), which is a vector for each row: a speaker, a class, a degree
    of noise. Without one, and at the start, it is the :class:`HyenaFilter` of the same weights.

    ``HyenaOperator(…, filter=partial(FiLMFilter, condition_dim=Q))`` is called as ``operator(u, condition=c)``. Taps of
    ``B`` rows cost ``B`` times as much as those that the rows share, in time and, up to 65536 of them, in memory, and a
    transform for each row's filter comes on top.

    Args:
        channels: C.
        l_max: most taps that may be asked for.
        num_filters: F.
        condition_dim: Q.
        causal: lags from 0 on; otherwise two-sided.
        emb_dim, width, inner_layers, freq, shift, time_unit, encoding, window: as :class:`HyenaFilter`.

    Raises:
        TypeError: sizes that are not integers.
        ValueError: a size below 1.
    """

    def __init__(
        self,
        channels: int,
        l_max: int,
        num_filters: int = 1,
        *,
        condition_dim: int = 16,
        causal: bool = True,
        emb_dim: int = 33,
        width: int = 64,
        inner_layers: int = 2,
        freq: float | None = None,
        shift: float = 0.0,
        time_unit: int | None = None,
        encoding: nn.Module | None = None,
        window: nn.Module | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        sizes: dict[str, Any] = {"emb_dim": emb_dim, "width": width, "inner_layers": inner_layers, "freq": freq}
        parts: dict[str, Any] = {"shift": shift, "time_unit": time_unit, "encoding": encoding, "window": window}
        at: dict[str, Any] = {"device": device, "dtype": dtype}
        super().__init__(channels, l_max, num_filters, causal=causal, **sizes, **parts, **at)
        check_sizes(condition_dim=condition_dim)
        self.condition_dim = condition_dim
        at["dtype"] = self.weight_dtype(dtype)
        self.film = FiLM(condition_dim, 1 + inner_layers, width, **at)

    def reset_parameters(self) -> None:
        """Initialises every part again, and scales the filters to unit norm."""
        self.film.reset_parameters()
        super().reset_parameters()

    def forward(self, length: int, condition: Tensor | None = None) -> Tensor:
        """Taps for rows of ``length`` positions.

        Args:
            length: K.
            condition: ``(B, Q)``, a vector for each row.

        Returns:
            ``(B, F, K, C)``, two-sided ``(B, F, 2 K - 1, C)`` with lags ``-(K-1) … K-1``; without a condition no ``B``.
            float64 if the weights are, else float32.

        Raises:
            ValueError: ``length`` is more than ``l_max``, or a condition of another shape.
        """
        if condition is None:
            return super().forward(length)
        self.check_length(length)
        self.check_condition(condition)
        args = (length, condition, *self._place())
        return self._sides(self._lean(condition.size(0) * length, self._conditioned, *args))

    def _conditioned(self, length: int, condition: Tensor, device: torch.device, dtype: torch.dtype) -> Tensor:
        """All taps of all lags: ``(B, F, K, C)``, two-sided ``(B, 2 F, K, C)``."""
        with ops.without_autocast(device):
            features, t = self.encoding(length, device, dtype)
            h = self.ffn(features, self.film(condition.to(device, dtype))) * self.window(t)  # (B, K, F * C)
        return h.unflatten(2, (-1, self.channels)).transpose(1, 2)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, condition_dim={self.condition_dim}"
