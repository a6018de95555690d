"""The Hyena operator: long convolutions and gates in turn, ``(B, L, D) -> (B, L, D)``.

Dimensions: B batch, L length, D channels (d_model), I inner width (inner_factor * D), N order, F long filters, M heads,
P transform length, Q channels of a condition.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from hyena import functional, ops
from hyena.conv.long import FilterFactory, LongConv
from hyena.conv.short import ShortConv
from hyena.filters import HyenaFilter
from hyena.mixers._arguments import check, find_activation
from hyena.mixers.hyena_state import HyenaState
from hyena.mixers.hyena_steps import HyenaSteps
from hyena.mixers.rows import unpacked


class HyenaOperator(HyenaSteps):
    """Sub-quadratic sequence mixing in attention's place (Poli et al. 2023, arXiv 2302.10866).

    ``z = u W_in + b_in`` and a short causal convolution give gates ``x^0 … x^{N-1}`` and a value ``v``; then for ``x``
    in ``x^{N-1} … x^1``: ``v = h_n * (x v) + d_n (x v)`` with ``*`` the long convolution, and ``(x^0 v) W_out +
    b_out``.

    Long filters are convolved by transforms, which spread a NaN or an infinity over its whole row, earlier positions
    included: see :func:`hyena.functional.fft_conv`, and ``torch.autograd.detect_anomaly`` to find it.

    Args:
        d_model: D.
        l_max: longest input. Longer ones raise; :meth:`extend` makes a trained operator take them.
        order: N, 1 to 8. There are ``N - 1`` long filters (``N`` with ``value_filter``): order 1 without a value filter
            mixes over the short filter's taps alone.
        num_heads: M. More than one makes it multi-head Hyena (arXiv 2310.18780): one filter a head, and gates take
            turns at forming an outer product with the value inside their head and contracting it again. It holds
            ``D / M`` times as many channels in half of its long convolutions, and costs accordingly.
        filter: the long filters: a class of :mod:`hyena.filters` or a ``functools.partial`` of one
            (``partial(HyenaFilter, width=32)``), or a module. See :class:`hyena.conv.LongConv`; G is D,
            ``filter_groups`` or M.
        filter_groups: ties the filters of contiguous groups of channels, so that there are only this many.
        short_taps: taps of the short convolution, causal also in two-sided operators.
        value_filter: the recurrence of the paper's equation 4, which also convolves ``v`` before the first gate.
        causal: no output sees a later input. Otherwise filters are two-sided.
        dropout: probability of dropping an entry of a gate-value product, as in the released code.
        activation: on the mixed values before the output projection: "gelu", "relu", "sigmoid",
            "silu", "tanh", a function, or None.
        inner_factor: the mixing is this many times as wide as D.
        bias: whether the two projections have a bias.
        short_bias: whether the short convolution has one.
        out_bias: whether the output projection has one, if that differs from ``bias``.

    Raises:
        TypeError: arguments of another type, unknown keywords.
        ValueError: numbers that do not fit together, with what would.
    """

    def __init__(
        self,
        d_model: int,
        l_max: int,
        *,
        order: int = 2,
        num_heads: int = 1,
        filter: nn.Module | FilterFactory | None = HyenaFilter,
        filter_groups: int | None = None,
        short_taps: int = 3,
        value_filter: bool = False,
        causal: bool = True,
        dropout: float = 0.0,
        activation: str | Callable[[Tensor], Tensor] | None = None,
        inner_factor: int = 1,
        bias: bool = True,
        short_bias: bool = True,
        out_bias: bool | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        out_bias = bias if out_bias is None else out_bias
        check(
            d_model=d_model,
            l_max=l_max,
            order=order,
            num_heads=num_heads,
            short_taps=short_taps,
            dropout=dropout,
            filter_groups=filter_groups,
            inner_factor=inner_factor,
            flags={
                "value_filter": value_filter,
                "causal": causal,
                "bias": bias,
                "short_bias": short_bias,
                "out_bias": out_bias,
            },
        )
        at: dict[str, Any] = {"device": torch.device(device) if device is not None else None, "dtype": dtype}
        width = d_model * inner_factor
        self.d_model, self.order, self.num_heads, self.width = d_model, order, num_heads, width
        self.causal, self.value_filter = causal, value_filter
        self._has_heads = num_heads > 1  # also of a part that has one of several
        self.activation = find_activation(activation)
        self.dropout = nn.Dropout(dropout)
        self.in_proj = nn.Linear(d_model, (order + 1) * width, bias=bias, **at)
        self.short = ShortConv((order + 1) * width, short_taps, bias=short_bias, **at)
        self.conv = LongConv(
            num_heads if num_heads > 1 else width,
            l_max,
            order if value_filter else order - 1,
            filter=filter,
            filter_channels=num_heads if num_heads > 1 else filter_groups or width,
            causal=causal,
            **at,
        )
        self.out_proj = nn.Linear(width, d_model, bias=out_bias, **at)

    @property
    def l_max(self) -> int:  # type: ignore[override]  # what the long convolution takes
        """The longest input."""
        return self.conv.l_max

    def forward(
        self,
        u: Tensor,
        mask: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        max_seqlen: int | None = None,
        state: HyenaState | None = None,
        condition: Tensor | None = None,
    ) -> Tensor:
        """Mixes along the sequence.

        Args:
            u: ``(B, L, D)``; packed rows also as ``(T, D)``; with a ``state`` the next positions.
            mask: ``(B, L)`` bool, True = keep. Positions that are not kept take part in nothing, wherever they stand,
                and come out as ``b_out``.
            cu_seqlens: ``(rows + 1,)`` int32 or int64: rows packed one after the other into one, as in
                flash-attention's varlen functions; no row sees another.
            max_seqlen: longest packed row. Found from ``cu_seqlens`` if missing, which waits for the device and cannot
                be traced by ``torch.compile``.
            state: what came before, from :meth:`init_state`; changed in place, without gradients.
            condition: ``(B, Q)``, of packed rows ``(rows, Q)``: each row's filters are those of its condition (filters
                that take one, :class:`hyena.filters.FiLMFilter`). Packed rows are then padded inside. Decoding takes
                the condition in :meth:`init_state`.

        Returns:
            ``(B, L, D)``, or ``(T, D)`` as it came.

        Raises:
            ValueError: rows longer than ``l_max``, shapes that do not fit, or a condition for filters that take none.
        """
        if state is not None:
            return self._go_on(u, mask, cu_seqlens, max_seqlen, state, condition)
        flat = u.dim() == 2 and cu_seqlens is not None
        if flat:
            u = u[None]
        longest = self.check_rows(u, cu_seqlens, max_seqlen)
        if condition is not None:
            y = self._mix_conditioned(u, longest, mask, cu_seqlens, condition)
        elif self._is_fused(longest):
            z, z_bias = ops.project_for_mixing(u, self.in_proj, self.width, mask)
            y = self._mix_at_once(z, longest, mask, cu_seqlens, z_bias)
        else:
            z = ops.project(u, self.in_proj, channel_major=None, mask=mask)
            y = self._mix_in_parts(z, longest, mask, cu_seqlens)
        if self.activation is not None:
            y = self.activation(ops.from_blocks(y))
        y = ops.project(y, self.out_proj)
        return y[0] if flat else y

    def _longer_rows(self, longest: int) -> str:
        return f"; extend(l_max={longest}) lets it take such rows, and says what becomes of its filters"

    def _is_fused(self, longest: int) -> bool:
        """Whether the fused mixing step does all that happens between the projections, and is the fastest to do it.

        On a CPU it is faster than a short convolution and few taps applied one by one, which pass over memory twice.
        """
        if (self.training and self.dropout.p > 0) or self._has_heads:
            return False
        return (
            ops.is_plain(self.short, ShortConv)
            and ops.is_plain(self.conv, LongConv)
            and (self.conv.bias.device.type == "cpu" or not self.conv.is_direct(longest))
        )

    def _mix_at_once(
        self, z: Tensor, longest: int, mask: Tensor | None, cu_seqlens: Tensor | None, z_bias: Tensor | None = None
    ) -> Tensor:
        """Everything between the projections in one call, tap by tap where that is faster."""
        short, conv = self.short, self.conv
        taps = self._few_taps(longest) if conv.num_filters == 1 else None
        if taps is None:
            filters, sectioned = (conv.spectrum(longest), conv.bias), conv.section(longest) is not None
            return ops.recurrence(z, short.weight, short.bias, *filters, mask, cu_seqlens, z_bias, sectioned)
        filter = taps[0], conv.bias[0]
        return ops.direct_recurrence(z, short.weight, short.bias, *filter, mask, cu_seqlens, z_bias, conv.causal)

    def _few_taps(self, longest: int) -> Tensor | None:
        """Taps ``(F, K, G)`` that rows of this length meet faster one by one, in one call with all else."""
        # A traced graph has the one way that serves any length.
        if torch.compiler.is_compiling() or not ops.has_kernel("direct_recurrence", self.conv.bias.device):
            return None
        return self.conv.prepare(longest).taps if self.conv.is_direct(longest) else None

    def _mix_conditioned(
        self, u: Tensor, longest: int, mask: Tensor | None, cu_seqlens: Tensor | None, condition: Tensor
    ) -> Tensor:
        """The recurrence of rows that have filters of their own."""
        if cu_seqlens is not None:
            ops.check_row(u, mask, cu_seqlens)
            index, keep, back = unpacked(cu_seqlens, u.size(1), longest)
            keep = keep if mask is None else keep & mask[0][index]
            return self._mix_conditioned(u[0][index], longest, keep, None, condition)[back][None]
        self.conv.check_condition(condition, u.size(0))
        z = ops.project(u, self.in_proj, channel_major=None, mask=mask)
        return self._mix_in_parts(z, longest, mask, None, condition)

    def _mix_in_parts(
        self,
        z: Tensor,
        longest: int,
        mask: Tensor | None,
        cu_seqlens: Tensor | None,
        condition: Tensor | None = None,
    ) -> Tensor:
        """The recurrence one convolution at a time, for whatever the fused step does not do."""
        *x, v = self.short(z, mask, cu_seqlens).split(self.width, dim=2)
        if self.conv.num_filters == 0:
            return x[0] * v
        prepared = self.conv.prepare(longest, condition)

        def convolve(i: int, v: Tensor, pre: Tensor | None = None, post: Tensor | None = None) -> Tensor:
            return self.conv(v, i, pre, post, cu_seqlens, longest, prepared)

        if self._has_heads or (self.training and self.dropout.p > 0):
            return self._recurrence(x, v, convolve)
        return self._gated_in_turn(x, v, convolve)

    @property
    def units(self) -> int:
        """Heads, or channels; of channels that share filters the groups, if there are several."""
        if self._has_heads:
            return self.num_heads
        groups = self.conv.filter_channels
        return groups if groups > 1 else self.width

    @property
    def parts(self) -> int:
        """Gates and value."""
        return self.order + 1

    def core(self, units: range) -> HyenaOperator:
        """The mixing of some heads or channels; see :meth:`hyena.mixers.Mixer.core`."""
        each = self.width // self.units
        channels = range(units.start * each, units.stop * each)
        shared = self.conv.filter_channels == 1
        copy: HyenaOperator = self._core((self.order + 1) * len(channels))
        copy.short = self.short.narrow(channels, self.width)
        copy.conv = self.conv.narrow(units if self._has_heads else channels, range(1) if shared else units)
        copy.width, copy.num_heads = len(channels), len(units) if self._has_heads else 1
        return copy

    def extend(self, l_max: int, mode: str = "continue") -> None:
        """Lets a trained operator take longer rows.

        Args:
            l_max: the longest row from now on.
            mode: what becomes of the filters, see :meth:`hyena.filters.HyenaFilter.extend`.

        Raises:
            ValueError: filters that cannot be extended.
        """
        self.conv.extend(l_max, mode)

    def to_matrix(
        self,
        u: Tensor,
        mask: Tensor | None = None,
        channels: slice = slice(None),
        condition: Tensor | None = None,
    ) -> Tensor:
        """The data-controlled matrix ``H(u)``: what Hyena has in place of an attention map.

        ``y = torch.einsum("bcts,bsc->btc", H, v)`` are the mixed values before activation and output projection, with
        ``v`` the value after the short convolution.

        Args:
            u: ``(B, L, D)``.
            mask, condition: as in :meth:`forward`.
            channels: which of the I channels; all of them have ``L ** 2`` numbers each.

        Returns:
            ``(B, C, L, L)`` for the C channels asked for; with ``num_heads > 1`` the channels of a head share one
            matrix for even orders. Built from explicit Toeplitz and diagonal matrices, without dropout.

        Raises:
            ValueError: as :meth:`forward`.
        """
        self.check_rows(u, None, None)
        *x, _ = self.short(self.in_proj(u), mask).split(self.width, dim=2)
        return self._matrix(torch.stack(x, dim=1), channels, condition)

    def _matrix(self, gates: Tensor, channels: slice, condition: Tensor | None = None) -> Tensor:
        """``H`` of gates ``(B, N, L, I)``."""
        if condition is None:
            return self._matrix_of(gates, self.conv.matrix_taps(gates.size(2)), channels)
        self.conv.check_condition(condition, gates.size(0))
        taps = self.conv.own_taps(gates.size(2), condition)
        return torch.cat([self._matrix_of(row[None], h, channels) for row, h in zip(gates, taps, strict=True)])

    def _matrix_of(self, gates: Tensor, h: Tensor, channels: slice) -> Tensor:
        given, dtype = gates.dtype, ops.compute_dtype(gates)
        gates, h, d = gates.to(dtype), h.to(dtype), self.conv.bias.to(dtype)
        if self.num_heads == 1:
            h = h.repeat_interleave(self.width // h.size(2), dim=2)
            parts = (gates[..., channels], h[..., channels], d[:, channels])
            return functional.hyena_matrix(*parts, causal=self.causal).to(given)
        return functional.hyena_matrix(gates, h, d, causal=self.causal, num_heads=self.num_heads)[:, channels].to(given)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        for before, now in _RENAMED.items():
            for name in [name for name in state_dict if name.startswith(prefix + before)]:
                state_dict[prefix + now + name.removeprefix(prefix + before)] = state_dict.pop(name)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def extra_repr(self) -> str:
        return (
            f"d_model={self.d_model}, l_max={self.l_max}, order={self.order}, num_heads={self.num_heads}, "
            f"causal={self.causal}, value_filter={self.value_filter}"
        )


# Names in state dicts of version 0.1, and today's.
_RENAMED = {
    "short_weight": "short.weight",
    "short_bias": "short.bias",
    "filter_bias": "conv.bias",
    "filter.": "conv.filter.",
}
