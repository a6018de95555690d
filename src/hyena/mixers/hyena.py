"""The Hyena operator as a layer: ``(B, L, D) -> (B, L, D)``.

Dimensions: B batch, L length, D channels (d_model), W inner width (inner_factor * D), N order, F long filters, M heads,
P transform length.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from hyena import functional, ops
from hyena.conv.cache import SpectrumCache, may_cache
from hyena.filters import HyenaFilter
from hyena.mixers._arguments import check, find_activation

if TYPE_CHECKING:  # generation is built on operators; only the methods below reach back, when they are called
    from hyena.generation.state import HyenaState


class HyenaOperator(nn.Module):
    """Sub-quadratic sequence mixing in attention's place (Poli et al. 2023, arXiv 2302.10866).

    ``z = u W_in + b_in`` and a short causal convolution give gates ``x^0 … x^{N-1}`` and a value ``v``; then for ``x``
    in ``x^{N-1} … x^1``: ``v = h_n * (x v) + d_n (x v)`` with ``*`` the long convolution, and ``(x^0 v) W_out +
    b_out``.

    Args:
        d_model: D.
        l_max: longest input. Longer ones raise.
        order: N, 1 to 8. There are ``N - 1`` long filters (``N`` with ``value_filter``): order 1 without a value filter
            mixes over the short filter's taps alone.
        num_heads: M. More than one makes it multi-head Hyena (arXiv 2310.18780): one filter a head, and gates take
            turns at forming an outer product with the value inside their head and contracting it again. It holds
            ``D / M`` times as many channels in half of its long convolutions, and costs accordingly.
        filter_order: width of the FFN that generates the filters.
        emb_dim: features of the filter's positional encoding, odd.
        short_filter_order: taps of the short convolution, causal also in two-sided operators.
        dropout: probability of dropping an entry of a gate-value product, as in the released code.
        activation: on the mixed values before the output projection: "gelu", "relu", "sigmoid",
            "silu", "tanh", a function, or None.
        causal: no output sees a later input. Otherwise filters are two-sided.
        value_filter: the recurrence of the paper's equation 4, which also convolves ``v`` before the first gate.
        filter_groups: ties the filters of contiguous groups of channels, so that there are only this many.
        inner_factor: the mixing is this many times as wide as D.
        num_blocks: cuts rows into this many blocks of equal length; the long filters do not reach across their borders
            (the short filter does). Input lengths must be a multiple.
        post_order_ffn: after each long convolution a trained M x M matrix mixes the heads; it starts as the identity.
        bias: whether the two projections have a bias.
        filter: what to use instead of a :class:`HyenaFilter` made from the numbers above. Called with a length it
            returns taps ``(F, length, G)`` (two-sided ``(F, 2 * length - 1, G)``), G being D, ``filter_groups`` or M. A
            filter whose taps change with the length (normalised over it, say) sets ``depends_on_length = True``.

    Raises:
        ValueError: numbers that do not fit together, with what would.
    """

    filter: nn.Module | None
    head_mixing: Tensor | None

    def __init__(
        self,
        d_model: int,
        l_max: int,
        *,
        order: int = 2,
        num_heads: int = 1,
        filter_order: int = 64,
        emb_dim: int = 33,
        short_filter_order: int = 3,
        dropout: float = 0.0,
        activation: str | Callable[[Tensor], Tensor] | None = None,
        causal: bool = True,
        value_filter: bool = False,
        filter_groups: int | None = None,
        inner_factor: int = 1,
        num_blocks: int = 1,
        post_order_ffn: bool = False,
        bias: bool = True,
        filter: nn.Module | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        width = d_model * inner_factor
        check(d_model, l_max, order, num_heads, short_filter_order, dropout, filter_groups, inner_factor, num_blocks)
        at: dict[str, Any] = {"device": torch.device(device) if device is not None else None, "dtype": dtype}
        self.d_model, self.l_max, self.order, self.num_heads = d_model, l_max, order, num_heads
        self.width, self.num_blocks, self.causal, self.value_filter = width, num_blocks, causal, value_filter
        self.num_filters = order if value_filter else order - 1
        self.filter_channels = num_heads if num_heads > 1 else filter_groups or width
        self.activation = find_activation(activation)
        self.dropout = nn.Dropout(dropout)

        self.in_proj = nn.Linear(d_model, (order + 1) * width, bias=bias, **at)
        self.out_proj = nn.Linear(width, d_model, bias=bias, **at)
        self.short_weight = nn.Parameter(torch.empty((order + 1) * width, short_filter_order, **at))
        self.short_bias = nn.Parameter(torch.empty((order + 1) * width, **at))
        if filter is None and self.num_filters > 0:
            filter = HyenaFilter(
                self.filter_channels,
                l_max // num_blocks,
                self.num_filters,
                causal=causal,
                emb_dim=emb_dim,
                width=filter_order,
                **at,
            )
        self.filter = filter
        self.filter_bias = nn.Parameter(torch.empty(self.num_filters, num_heads if num_heads > 1 else width, **at))
        if post_order_ffn:
            self.head_mixing = nn.Parameter(torch.empty(self.num_filters, num_heads, num_heads, **at))
        else:
            self.register_parameter("head_mixing", None)
        self._spectra = SpectrumCache()
        self._reset_own_parameters()

    def reset_parameters(self) -> None:
        """Initialises every parameter again."""
        self.in_proj.reset_parameters()
        self.out_proj.reset_parameters()
        reset = getattr(self.filter, "reset_parameters", None)
        if reset is not None:
            reset()
        self._reset_own_parameters()

    def _reset_own_parameters(self) -> None:
        # nn.Conv1d's and the released filter bias' initialisation.
        bound = self.short_weight.size(1) ** -0.5
        nn.init.uniform_(self.short_weight, -bound, bound)
        nn.init.uniform_(self.short_bias, -bound, bound)
        nn.init.normal_(self.filter_bias)
        if self.head_mixing is not None:
            with torch.no_grad():
                self.head_mixing.copy_(torch.eye(self.num_heads, device=self.head_mixing.device))

    def forward(
        self,
        u: Tensor,
        mask: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        max_seqlen: int | None = None,
    ) -> Tensor:
        """Mixes along the sequence.

        Args:
            u: ``(B, L, D)``; packed rows also as ``(T, D)``.
            mask: ``(B, L)`` bool, True = keep. Positions that are not kept take part in nothing, wherever they stand,
                and come out as ``b_out``.
            cu_seqlens: ``(rows + 1,)`` int32 or int64: rows packed one after the other into one, as in
                flash-attention's varlen functions; no row sees another.
            max_seqlen: longest packed row. Found from ``cu_seqlens`` if missing, which waits for the device and cannot
                be traced by ``torch.compile``.

        Returns:
            ``(B, L, D)``, or ``(T, D)`` as it came.

        Raises:
            ValueError: rows longer than ``l_max``, or shapes that do not fit.
        """
        flat = u.dim() == 2 and cu_seqlens is not None
        if flat:
            u = u[None]
        longest = self._longest(u, cu_seqlens, max_seqlen)
        if self._needs_parts():
            z = ops.project(u, self.in_proj, channel_major=None)
            y = self._mix_in_parts(z, longest, mask, cu_seqlens)
        else:
            y = self._mix(u, longest, mask, cu_seqlens)
        if self.activation is not None:
            y = self.activation(y)
        y = ops.project(y, self.out_proj)
        return y[0] if flat else y

    def _longest(self, u: Tensor, cu_seqlens: Tensor | None, max_seqlen: int | None) -> int:
        """The longest row of the input, checked against what this operator was built for."""
        if u.dim() != 3 or u.size(2) != self.d_model:
            raise ValueError(f"expected an input of shape (B, L, {self.d_model}), got {tuple(u.shape)}")
        longest = u.size(1)
        if cu_seqlens is not None:
            if self.num_blocks > 1:
                raise ValueError(
                    f"packed rows cannot be cut into num_blocks={self.num_blocks} equal blocks; pad them instead"
                )
            if max_seqlen is None:
                max_seqlen = int(cu_seqlens.diff().max())
            else:
                ops.check_longest(cu_seqlens, max_seqlen)
            longest = min(longest, max(max_seqlen, 1))
        if longest > self.l_max:
            raise ValueError(
                f"a row of {longest} positions is longer than this operator's l_max={self.l_max}; build it with "
                f"l_max={longest} or more (its weights load at any l_max)"
            )
        if longest % self.num_blocks != 0:
            raise ValueError(f"{longest} positions cannot be cut into num_blocks={self.num_blocks} equal blocks")
        return longest

    def _needs_parts(self) -> bool:
        """Whether something happens between the convolutions that the fused mixing step does not do."""
        dropping = self.training and self.dropout.p > 0
        return dropping or self.num_heads > 1 or self.num_blocks > 1 or self.head_mixing is not None

    def _spectrum(self, longest: int) -> Tensor:
        """Spectra of all filters for blocks of ``longest`` positions: (F, G, P+1, 2)."""
        size, source = ops.transform_length(longest), self.filter
        if source is None:  # order 1: gates and the short filter alone
            dtype = ops.compute_dtype(self.short_weight)
            return torch.zeros(0, 1, size + 1, 2, dtype=dtype, device=self.short_weight.device)
        if may_cache(source):
            # As many taps as the transform holds, so that one spectrum serves every length that has this transform.
            taps = min(size, self.l_max // self.num_blocks)
            return self._spectra.get(source, size, lambda: self._compute_spectrum(source, taps, size))
        return self._compute_spectrum(source, longest, size)

    def _compute_spectrum(self, source: nn.Module, taps: int, size: int) -> Tensor:
        h = source(taps)
        expected = (self.num_filters, taps if self.causal else 2 * taps - 1, self.filter_channels)
        if h.shape != expected:
            raise ValueError(f"the filter returned taps of shape {tuple(h.shape)}, this operator needs {expected}")
        return ops.filter_spectrum(h, size, self.causal)

    def clear_cache(self) -> None:
        """Forgets cached spectra: needed only after writing through ``.data`` to weights that are not on the CPU."""
        self._spectra.clear()

    def train(self, mode: bool = True) -> HyenaOperator:
        """As ``nn.Module.train``; cached spectra are forgotten."""
        self._spectra.clear()
        return super().train(mode)

    def _mix(self, u: Tensor, longest: int, mask: Tensor | None, cu_seqlens: Tensor | None) -> Tensor:
        """The projection and the fused mixing step, which may have the projection's bias to add."""
        z, bias = ops.project_without_bias(u, self.in_proj)
        spectrum = self._spectrum(longest)
        return ops.recurrence(z, self.short_weight, self.short_bias, spectrum, self.filter_bias, mask, cu_seqlens, bias)

    def _mix_in_parts(self, z: Tensor, longest: int, mask: Tensor | None, cu_seqlens: Tensor | None) -> Tensor:
        """The recurrence one convolution at a time, for whatever the fused step does not do."""
        blocks, bias = self.num_blocks, self.filter_bias
        *x, v = self._gates_and_value(z, mask, cu_seqlens)
        spectrum = self._spectrum(longest // blocks)

        def convolve(i: int, v: Tensor) -> Tensor:
            rows = v.reshape(v.size(0) * blocks, v.size(1) // blocks, -1)
            d = bias[i].repeat_interleave(rows.size(2) // bias.size(1))
            return ops.gated_conv(rows, spectrum[i], d, cu_seqlens=cu_seqlens)

        return self._recurrence(x, v, convolve)

    def _recurrence(self, x: list[Tensor], v: Tensor, convolve: Callable[[int, Tensor], Tensor]) -> Tensor:
        """Gates and convolutions in turn; ``convolve`` is long convolution ``i``, of positions in any shape."""
        outer = False  # whether v is (B, L, M, D/M, D/M), an outer product inside each head
        for i in range(self.num_filters):
            step = i - 1 if self.value_filter else i
            if step >= 0:
                v, outer = self._gate(x[self.order - 1 - step], v, outer)
                v = self.dropout(v)
            v = convolve(i, v).reshape(v.shape)
            if self.head_mixing is not None:
                v = self._mix_heads(v, self.head_mixing[i])
        return self._gate(x[0], v, outer)[0] if outer else x[0] * v

    def _gates_and_value(self, z: Tensor, mask: Tensor | None, cu_seqlens: Tensor | None) -> tuple[Tensor, ...]:
        zc = ops.short_conv(z, self.short_weight, self.short_bias, mask, cu_seqlens)
        return zc.split(self.width, dim=2)

    def _gate(self, x: Tensor, v: Tensor, outer: bool) -> tuple[Tensor, bool]:
        """Multiplies by a gate; with heads, forms the outer product inside each head or contracts it."""
        if self.num_heads == 1:
            return x * v, False
        x = x.unflatten(2, (self.num_heads, -1))  # (B, L, M, D/M)
        if outer:
            return torch.einsum("blma,blmac->blmc", x, v).flatten(2), False
        v = v.unflatten(2, (self.num_heads, -1))
        return x[..., :, None] * v[..., None, :], True

    def _mix_heads(self, v: Tensor, weight: Tensor) -> Tensor:
        heads = v.flatten(2).unflatten(2, (self.num_heads, -1))
        return torch.einsum("hk,blhc->blkc", weight.to(v.dtype), heads).reshape(v.shape)

    def init_state(self, batch: int, max_length: int | None = None) -> HyenaState:
        """What this operator remembers of its input before the first position.

        ``hyena.generation.state_size`` states its bytes beforehand.

        Args:
            batch: B.
            max_length: how many positions may come, at most and if missing ``l_max``. Memory is in proportion to it.

        Raises:
            ValueError: operators whose outputs are not known until the whole input is: ``causal=False``,
                ``num_blocks > 1``, and filters whose taps depend on the length.
        """
        from hyena import generation

        return generation.init_state(self, batch, max_length)

    def prefill(self, u: Tensor, state: HyenaState, mask: Tensor | None = None) -> tuple[Tensor, HyenaState]:
        """The outputs of the next positions, exactly those of :meth:`forward` on everything that came.

        Any number of positions, also after steps; no gradient passes through.

        Args:
            u: ``(B, n, D)``, the next positions.
            state: what came before; changed in place.
            mask: ``(B, n)`` bool, True = keep, as in :meth:`forward`. Rows of different lengths are padded on the left,
                if they are to go on.

        Returns:
            ``(B, n, D)``, and the state.

        Raises:
            ValueError: more positions than the state was made for, or shapes that do not fit.
        """
        from hyena import generation

        return generation.prefill(self, u, state, mask)

    def step(self, u: Tensor, state: HyenaState, mask: Tensor | None = None) -> tuple[Tensor, HyenaState]:
        """:meth:`prefill` of one position: ``u`` ``(B, D)``, ``mask`` ``(B,)``, output ``(B, D)``."""
        from hyena import generation

        return generation.step(self, u, state, mask)

    def to_matrix(self, u: Tensor, mask: Tensor | None = None) -> Tensor:
        """The data-controlled matrix ``H(u)``: what Hyena has in place of an attention map.

        ``y = torch.einsum("bcts,bsc->btc", H, v)`` are the mixed values before activation and output projection, with
        ``v`` the value after the short convolution.

        Args:
            u: ``(B, L, D)``.
            mask: as in :meth:`forward`.

        Returns:
            ``(B, W, L, L)``; with ``num_heads > 1`` the channels of a head share one matrix (as views) for even orders.
            Built from explicit Toeplitz and diagonal matrices, without dropout.

        Raises:
            ValueError: as :meth:`forward`; with ``post_order_ffn``, which mixes heads, so that no such matrix exists.
        """
        if self.head_mixing is not None:
            raise ValueError("with post_order_ffn heads mix between the convolutions: H(u) does not act on one channel")
        longest = self._longest(u, None, None)
        *x, _ = self._gates_and_value(self.in_proj(u), mask, None)
        gates = torch.stack(x, dim=1)
        size = longest // self.num_blocks
        h = gates.new_zeros(0, 1, 1) if self.filter is None else self.filter(size).to(gates.dtype)
        d = self.filter_bias.to(gates.dtype)
        parts = [
            functional.hyena_matrix(part, h, d, causal=self.causal, num_heads=self.num_heads)
            for part in gates.split(size, dim=2)
        ]
        if len(parts) == 1:
            return parts[0]
        whole = gates.new_zeros(gates.size(0), self.width, longest, longest)
        for i, part in enumerate(parts):
            whole[..., i * size : (i + 1) * size, i * size : (i + 1) * size] = part
        return whole

    def extra_repr(self) -> str:
        return (
            f"d_model={self.d_model}, l_max={self.l_max}, order={self.order}, num_heads={self.num_heads}, "
            f"causal={self.causal}, value_filter={self.value_filter}"
        )
