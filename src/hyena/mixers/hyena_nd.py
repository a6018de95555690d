"""The Hyena operator over grids: ``(B, *space, D) -> (B, *space, D)`` for one, two or three axes.

Dimensions: B batch, A axes, D channels (d_model), I inner width (inner_factor * D), N order, F long filters, M heads, L
positions of a grid.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hyena import ops
from hyena.conv.long_nd import FilterFactoryND, LongConvND
from hyena.conv.short_nd import ShortConvND
from hyena.filters import HyenaFilterND
from hyena.filters.base_nd import grid_size
from hyena.mixers._arguments import check, find_activation
from hyena.mixers._gates import Gated
from hyena.mixers.base_nd import MixerND


class HyenaND(Gated, MixerND):
    """Hyena over a grid: gates and two-sided long convolutions over all axes in turn (arXiv 2302.10866, 2309.13600).

    ``z = u W_in + b_in`` and a short depthwise convolution over all axes give gates ``x^0 … x^{N-1}`` and a value
    ``v``; then for ``x`` in ``x^{N-1} … x^1``: ``v = h_n * (x v) + d_n (x v)``, with ``*`` the convolution over the
    grid (:func:`hyena.functional.fft_conv_nd`), and ``(x^0 v) W_out + b_out``. Every output sees the whole grid, so it
    is not causal, cannot be stepped, and takes no packed rows. With one axis and ``short_padding="causal"`` it is
    :class:`hyena.HyenaOperator` with ``causal=False``.

    Args:
        d_model: D.
        size: positions along each axis of the largest grid, ``(n_1, …, n_A)`` with one to three axes; a number is one
            axis. Grids of any smaller size, square or not, take the same taps. :meth:`extend` lets a trained operator
            take larger ones, or the same extent at another resolution.
        order: N, 1 to 8.
        num_heads: M; see :class:`hyena.HyenaOperator`.
        filter: the long filters: :class:`hyena.filters.HyenaFilterND`, :class:`hyena.filters.S4ND`, a
            ``functools.partial`` of one (``partial(HyenaFilterND, window="gaussian")``), or a module. See
            :class:`hyena.conv.LongConvND`; G is I, ``filter_groups`` or M.
        filter_groups: ties the filters of contiguous groups of channels, so that there are only this many.
        short_taps: taps of the short convolution along each axis.
        short_padding: ``"same"``: they are centred; ``"causal"``: they end at the current position.
        boundary: what is beyond the grid, for short and long convolutions: ``"zero"``, ``"circular"`` or ``"reflect"``,
            of all axes or of each; see :func:`hyena.functional.fft_conv_nd`. It is the boundary of the grid, wherever a
            mask ends.
        value_filter: the recurrence of the paper's equation 4, which also convolves ``v`` before the first gate.
        dropout: probability of dropping an entry of a gate-value product.
        activation: on the mixed values before the output projection: "gelu", "relu", "sigmoid", "silu", "tanh", a
            function, or None.
        inner_factor: the mixing is this many times as wide as D.
        bias: whether the two projections have a bias.

    Raises:
        TypeError: arguments of another type, unknown keywords.
        ValueError: numbers that do not fit together, with what would.
    """

    def __init__(
        self,
        d_model: int,
        size: int | Sequence[int],
        *,
        order: int = 2,
        num_heads: int = 1,
        filter: nn.Module | FilterFactoryND | None = HyenaFilterND,
        filter_groups: int | None = None,
        short_taps: int = 3,
        short_padding: str = "same",
        boundary: str | Sequence[str] = "zero",
        value_filter: bool = False,
        dropout: float = 0.0,
        activation: str | Callable[[Tensor], Tensor] | None = None,
        inner_factor: int = 1,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        size = grid_size(size)
        check(
            d_model=d_model,
            l_max=math.prod(size),
            order=order,
            num_heads=num_heads,
            short_taps=short_taps,
            dropout=dropout,
            filter_groups=filter_groups,
            inner_factor=inner_factor,
            flags={"value_filter": value_filter, "bias": bias},
        )
        at: dict[str, Any] = {"device": torch.device(device) if device is not None else None, "dtype": dtype}
        width = d_model * inner_factor
        self.d_model, self.order, self.num_heads, self.width = d_model, order, num_heads, width
        self.value_filter, self._has_heads = value_filter, num_heads > 1
        self.activation = find_activation(activation)
        self.dropout = nn.Dropout(dropout)
        self.in_proj = nn.Linear(d_model, (order + 1) * width, bias=bias, **at)
        self.short = ShortConvND(
            (order + 1) * width, len(size), short_taps, padding=short_padding, boundary=boundary, **at
        )
        self.conv = LongConvND(
            num_heads if num_heads > 1 else width,
            size,
            order if value_filter else order - 1,
            filter=filter,
            filter_channels=num_heads if num_heads > 1 else filter_groups or width,
            boundary=boundary,
            **at,
        )
        self.out_proj = nn.Linear(width, d_model, bias=bias, **at)

    @property
    def size(self) -> tuple[int, ...]:  # type: ignore[override]  # what the long convolution takes
        """Positions along each axis of the largest grid."""
        return self.conv.size

    def forward(
        self,
        u: Tensor,
        mask: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        max_seqlen: int | None = None,
        state: Any = None,
        condition: Tensor | None = None,
    ) -> Tensor:
        """Mixes over the grid; see :meth:`MixerND.forward`. Positions that are not kept come out as ``b_out``.

        With a ``condition`` ``(B, Q)`` each row's filters are those of its condition (filters that take one,
        :class:`hyena.filters.FiLMFilterND`).
        """
        space = self.check_grid(u, mask, cu_seqlens, max_seqlen, state)
        if condition is not None:
            self.conv.check_condition(condition, u.size(0))
        z = ops.project(u.flatten(1, -2), self.in_proj, mask=None if mask is None else mask.flatten(1))
        *x, v = (part.flatten(1, -2) for part in self.short(z.unflatten(1, space), mask).split(self.width, dim=-1))
        prepared = self.conv.prepare(space, condition) if self.conv.num_filters else None

        def convolve(i: int, v: Tensor) -> Tensor:
            return self.conv(v.unflatten(1, space), i, prepared).flatten(1, -2)

        y = self._recurrence(x, v, convolve)
        if self.activation is not None:
            y = self.activation(y)
        return ops.project(y, self.out_proj).unflatten(1, space)

    def _larger_grids(self, size: tuple[int, ...]) -> str:
        return f"; extend(size={size}) lets it take such grids, and says what becomes of its filters"

    def extend(self, size: int | Sequence[int], mode: str = "continue") -> None:
        """Lets a trained operator take larger grids, or the same extent at another resolution.

        The short convolution's taps stay one position apart.

        Args:
            size: the largest grid from now on.
            mode: ``"continue"`` or ``"stretch"``: what becomes of the filters, see
                :meth:`hyena.filters.FilterND.extend`.

        Raises:
            ValueError: another number of axes, or filters that cannot be extended.
        """
        self.conv.extend(size, mode)

    def extra_repr(self) -> str:
        return (
            f"d_model={self.d_model}, size={self.size}, order={self.order}, num_heads={self.num_heads}, "
            f"value_filter={self.value_filter}"
        )
