"""Implicit filters over grids that a condition changes: one filter for each row of the batch, by FiLM.

Dimensions: B batch, F filters, C channels, A axes, K positions of a grid, Q channels of the condition.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hyena import ops
from hyena.filters._generated import place_of
from hyena.filters.base import check_condition, check_sizes
from hyena.filters.film import FiLM
from hyena.filters.implicit_nd import HyenaFilterND


class FiLMFilterND(HyenaFilterND):
    """A :class:`HyenaFilterND` whose sines a condition scales and shifts, so that each row has filters of its own.

    The filter over grids that :class:`hyena.filters.FiLMFilter` is along a sequence (FiLM, Perez et al. 2017, arXiv
    1709.07871). ``HyenaND(…, filter=partial(FiLMFilterND, condition_dim=Q))`` is called as ``mixer(u, condition=c)``.
    Taps of ``B`` rows cost ``B`` times as much as those that the rows share, and each row's filter a transform.

    Args:
        channels: C.
        size: positions along each axis of the largest grid.
        num_filters: F.
        condition_dim: Q.
        emb_dim, width, inner_layers, freq, window: as :class:`HyenaFilterND`.

    Raises:
        TypeError: sizes that are not integers.
        ValueError: a size below 1, no axes or more than three, an unknown window.
    """

    def __init__(
        self,
        channels: int,
        size: int | Sequence[int],
        num_filters: int = 1,
        *,
        condition_dim: int = 16,
        emb_dim: int = 33,
        width: int = 64,
        inner_layers: int = 2,
        freq: float | None = None,
        window: str | nn.Module = "exponential",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        sizes: dict[str, Any] = {"emb_dim": emb_dim, "width": width, "inner_layers": inner_layers, "freq": freq}
        super().__init__(channels, size, num_filters, window=window, **sizes, device=device, dtype=dtype)
        check_sizes(condition_dim=condition_dim)
        self.condition_dim = condition_dim
        self.film = FiLM(condition_dim, 1 + inner_layers, width, device=device, dtype=self.weight_dtype(dtype))

    def reset_parameters(self) -> None:
        """Initialises every part again, and scales the filters to unit norm."""
        self.film.reset_parameters()
        super().reset_parameters()

    def forward(self, size: Sequence[int], condition: Tensor | None = None) -> Tensor:
        """Taps for grids of ``size``.

        Args:
            size: of the grids.
            condition: ``(B, Q)``, a vector for each row.

        Returns:
            ``(B, F, 2 n_1 - 1, …, 2 n_A - 1, C)``; without a condition no ``B``. float64 if the weights are, else
            float32.

        Raises:
            ValueError: positions beyond those of the filter, or a condition of another shape.
        """
        if condition is None:
            return super().forward(size)
        self.check_size(size)
        check_condition(self, condition)
        device, dtype = place_of(self, self.ffn)
        with ops.without_autocast(device):
            features, times = self._features(size, device, dtype)
            h = self._lean(condition.size(0) * features.size(0), features, self.film(condition.to(device, dtype)))
            h = h.unflatten(2, (2 ** len(size), self.num_filters, self.channels)).movedim(1, 3)
            h = h.reshape(*h.shape[:3], *size, self.channels)  # (B, 2^A, F, *size, C)
            return self._join(h, self.window(times)) * self.density.to(dtype)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, condition_dim={self.condition_dim}"
