"""Filters over grids that are products of one filter for each axis: S4ND, and of any filters along a sequence.

Dimensions: F filters, G filter channels, A axes, n positions of an axis.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hyena.filters._initial import fill
from hyena.filters.base import Filter
from hyena.filters.base_nd import FilterND
from hyena.filters.s4d import S4D


class SeparableFilter(FilterND):
    """``h(l_1, …, l_A) = h_1(l_1) … h_A(l_A)``, for each axis and channel a two-sided filter along a sequence.

    Convolutions go along one axis after the other, which takes transforms of half the points or less, and parameters
    grow with the sum of the sizes, not with their product, where they grow with sizes at all.

    Args:
        channels: G.
        size: positions along each axis of the largest grid.
        num_filters: F.
        filter: of each axis: a class of :mod:`hyena.filters`, or a ``functools.partial`` of one, called as ``filter(G,
            n, F, causal=False, device=, dtype=)``; or a sequence of them, one for each axis.

    Raises:
        TypeError: sizes that are not integers.
        ValueError: a size below 1, no axes or more than three, filters for another number of axes, or filters that are
            not two-sided.
    """

    density: Tensor

    def __init__(
        self,
        channels: int,
        size: int | Sequence[int],
        num_filters: int = 1,
        *,
        filter: Callable[..., Filter] | Sequence[Callable[..., Filter]],
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(channels, size, num_filters)
        makers = list(filter) if isinstance(filter, Sequence) else [filter] * len(self.size)
        if len(makers) != len(self.size):
            raise ValueError(f"size={self.size} has {len(self.size)} axes, got {len(makers)} filters")
        made = [
            make(channels, n, num_filters, causal=False, device=device, dtype=dtype)
            for make, n in zip(makers, self.size, strict=True)
        ]
        for one in made:
            if not isinstance(one, Filter) or one.causal:
                raise ValueError(f"filter must make two-sided filters (hyena.filters.Filter), got {one!r}")
        self.filters: Any = nn.ModuleList(made)
        # What taps are multiplied by where the positions lie closer together than those of the training: see extend.
        self.register_buffer("density", torch.ones((), device=device, dtype=self.weight_dtype(dtype)))

    def reset_parameters(self) -> None:
        """Initialises the filter of every axis again."""
        for one in self.filters:
            one.reset_parameters()
        fill(self.density, torch.ones_like(self.density))

    def forward(self, size: Sequence[int]) -> Tensor:
        """Taps ``(F, 2 n_1 - 1, …, 2 n_A - 1, G)``; see :meth:`FilterND.forward`."""
        product: Tensor | None = None
        for h, n in zip(self.factors(size), size, strict=True):
            missing = n - (h.size(1) + 1) // 2
            h = nn.functional.pad(h, (0, 0, missing, missing))
            product = (
                h
                if product is None
                else product.unsqueeze(-2) * h.view(h.size(0), *(1,) * (product.dim() - 2), *h.shape[1:])
            )
        assert product is not None
        return product

    def factors(self, size: Sequence[int]) -> list[Tensor]:
        """Taps of each axis, ``(F, 2k-1, G)``, with ``k`` its positions, or the ``support`` of its filter if less."""
        self.check_size(size)
        first, *rest = (one(n) for one, n in zip(self.filters, size, strict=True))
        return [first * self.density.to(first.dtype), *rest]

    @torch.no_grad()
    def extend(self, size: int | Sequence[int], mode: str = "continue") -> None:
        """See :meth:`FilterND.extend`; the filters of the axes say whether they can be stretched."""
        new = self.check_extension(size, mode)
        for one, n in zip(self.filters, new, strict=True):  # all or none
            copy.deepcopy(one).extend(n, mode)
        for one, n, old in zip(self.filters, new, self.size, strict=True):
            one.extend(n, mode)
            if mode == "stretch" and not one.stretch_keeps_sums:
                self.density.mul_(old / n)
        self.size = new


class S4ND(SeparableFilter):
    """State spaces over a grid: the product of one for each axis, two-sided (Nguyen et al. 2022, arXiv 2210.06583).

    Section 3 there, of rank one: ``h(l_1, …, l_A) = h_1(l_1) … h_A(l_A)``, each ``h_a`` the filter of ``x' = A x + B u,
    y = C x`` read at steps of the axis's own, in both directions. ``HyenaND(…, filter=S4ND)`` has it between gates.

    Args:
        channels, size, num_filters: as :class:`SeparableFilter`.
        filter: the state space of each axis: :class:`hyena.filters.S4D`, :class:`hyena.filters.S4`, or a
            ``functools.partial`` of one; or a sequence, one for each axis.
    """

    def __init__(
        self,
        channels: int,
        size: int | Sequence[int],
        num_filters: int = 1,
        *,
        filter: Callable[..., Filter] | Sequence[Callable[..., Filter]] = S4D,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(channels, size, num_filters, filter=filter, device=device, dtype=dtype)
