"""Attention as a mixer: softmax attention by ``F.scaled_dot_product_attention``, with a cache of keys and values.

Dimensions: B batch, L length, D channels (d_model), M heads, H heads of keys and values, T room of a state, n new
positions.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hyena import ops
from hyena.filters.base import check_extension
from hyena.mixers._arguments import check_counts, check_flags, heads_of
from hyena.mixers._past import attend, shared
from hyena.mixers._rotary import Rotary, turn
from hyena.mixers.base import Mixer
from hyena.mixers.state import State


@dataclasses.dataclass
class AttentionState(State):
    """Keys and values of one :class:`Attention`.

    Args:
        keys, values: ``(B, H, T, D/M)``; keys turned by their positions, if those are rotary.
        keep: ``(B, T)`` bool, which of them are not padding.
        may_pad: False if it is known that all of them that came are kept.
    """

    keys: Tensor
    values: Tensor
    keep: Tensor
    may_pad: bool = False

    def _set_position(self, position: int) -> None:
        super()._set_position(position)
        self.may_pad = True  # what was saved may have padding


class Attention(Mixer):
    """Multi-head self-attention by ``F.scaled_dot_product_attention``, called as a Hyena operator is.

    For comparing, and for models that keep some attention. Without rotary positions it does not know the order of its
    inputs, and a model adds positions. Packed rows are kept apart by an ``L x L`` mask. With a state, chunks of any
    length meet what came before in blocks of keys: beyond the state, memory grows with the chunk alone.

    PyTorch's fused attention has no second derivatives on a CPU: take them under
    ``torch.nn.attention.sdpa_kernel(SDPBackend.MATH)``, here and of all mixers that attend.

    Args:
        d_model: D.
        l_max: longest row; None for any length, and then states need a ``max_length``.
        num_heads: M, a divisor of D. If missing, heads have 64 channels, or there is one where 64 does not divide D.
        num_kv_heads: H, a divisor of M: so many heads of keys and values, each for ``M / H`` consecutive heads of
            queries (grouped queries, arXiv 2305.13245); M if missing.
        causal: no output sees a later input.
        dropout: of the attention weights.
        bias: whether the projections have a bias.
        out_bias: whether the output projection has one, if that differs.
        rotary_base: turns queries and keys by their positions (arXiv 2104.09864): pair ``i`` of a head's ``d``
            channels, ``i`` and ``i + d/2``, by ``rotary_base^(-2i/d)`` for each position. None for no positions.
        rotary_scaling: what positions are divided by, for rows this many times as long as those of the training.
        rotary_frequencies: ``d/2`` numbers in place of the powers of ``rotary_base``.
    """

    def __init__(
        self,
        d_model: int,
        l_max: int | None = None,
        *,
        num_heads: int | None = None,
        num_kv_heads: int | None = None,
        causal: bool = True,
        dropout: float = 0.0,
        bias: bool = True,
        out_bias: bool | None = None,
        rotary_base: float | None = None,
        rotary_scaling: float = 1.0,
        rotary_frequencies: Sequence[float] | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        num_heads = heads_of(d_model, num_heads)
        if l_max is not None:
            check_counts(l_max=l_max)
        num_kv_heads = num_heads if num_kv_heads is None else num_kv_heads
        check_counts(num_kv_heads=num_kv_heads)
        if num_heads % num_kv_heads != 0:
            raise ValueError(f"num_heads={num_heads} is not a multiple of num_kv_heads={num_kv_heads}")
        out_bias = bias if out_bias is None else out_bias
        check_flags(causal=causal, bias=bias, out_bias=out_bias)
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout must be a number in [0, 1), got {dropout}")
        at: dict[str, Any] = {"device": device, "dtype": dtype}
        self.d_model, self.l_max, self.num_heads, self.num_kv_heads = d_model, l_max, num_heads, num_kv_heads
        self.causal, self.dropout, self.head_dim = causal, dropout, d_model // num_heads
        if rotary_base is None and (rotary_scaling != 1.0 or rotary_frequencies is not None):
            raise ValueError("rotary_scaling and rotary_frequencies are of rotary positions: pass rotary_base, too")
        self.needs_positions = rotary_base is None
        self.rotary = None
        if rotary_base is not None:
            frequencies = None if rotary_frequencies is None else tuple(float(f) for f in rotary_frequencies)
            self.rotary = Rotary(d_model // num_heads, rotary_base, rotary_scaling, frequencies)
        rows = d_model + 2 * num_kv_heads * (d_model // num_heads)
        self.in_proj = nn.Linear(d_model, rows, bias=bias, **at)
        self.out_proj = nn.Linear(d_model, d_model, bias=out_bias, **at)

    def reset_parameters(self) -> None:
        """Initialises every parameter again."""
        self.in_proj.reset_parameters()
        self.out_proj.reset_parameters()

    def forward(
        self,
        u: Tensor,
        mask: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        max_seqlen: int | None = None,
        state: AttentionState | None = None,
    ) -> Tensor:
        """Mixes along the sequence; see :meth:`hyena.mixers.Mixer.forward`."""
        if state is not None:
            return self._continue(u, mask, cu_seqlens, max_seqlen, state)
        flat = u.dim() == 2 and cu_seqlens is not None
        if flat:
            u = u[None]
        if self.l_max is None and cu_seqlens is not None and max_seqlen is None:
            max_seqlen = u.size(1)  # there is no limit for the longest row to meet: finding it would wait for a device
        self.check_rows(u, cu_seqlens, max_seqlen)
        ops.check_row(u, mask, cu_seqlens)
        if mask is not None:  # a NaN in the padding would reach the rest as 0 x NaN
            u = torch.where(mask[..., None], u, 0.0)
        q, k, v = self._heads(u, self._positions(u, cu_seqlens))
        allowed = self._allowed(u.size(1), mask, cu_seqlens, u.device)
        y = F.scaled_dot_product_attention(
            q,
            shared(k, self.num_heads),
            shared(v, self.num_heads),
            attn_mask=allowed,
            dropout_p=self.dropout if self.training else 0.0,
            is_causal=allowed is None and self.causal,
        )  # (B, M, L, D/M)
        y = ops.linear(y.transpose(1, 2).flatten(2), self.out_proj)
        return y[0] if flat else y

    def _positions(self, u: Tensor, cu_seqlens: Tensor | None = None, start: int = 0) -> Tensor | None:
        """Position of each input ``(L,)`` in its row, for rotary positions."""
        if self.rotary is None:
            return None
        at = torch.arange(start, start + u.size(1), device=u.device)
        return at if cu_seqlens is None else at - row_starts(cu_seqlens, u.size(1))

    def _heads(self, u: Tensor, at: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Query ``(B, M, L, D/M)``, key and value ``(B, H, L, D/M)``."""
        size = self.head_dim
        rows = [heads * size for heads in (self.num_heads, self.num_kv_heads, self.num_kv_heads)]
        z = ops.linear(u, self.in_proj)
        if z.stride(2) != 1:  # as it comes from other processes; torch's fused attention would not take it
            z = z.contiguous()
        q, k, v = (p.unflatten(2, (-1, size)).transpose(1, 2) for p in z.split(rows, dim=2))
        if self.rotary is None or at is None:
            return q, k, v
        table = self.rotary.table(at, ops.compute_dtype(q))
        return turn(q, table), turn(k, table), v

    def _allowed(
        self, length: int, mask: Tensor | None, cu_seqlens: Tensor | None, device: torch.device
    ) -> Tensor | None:
        """Which key each query may see, ``(B, 1, L, L)`` or ``(L, L)``; None if :attr:`causal` says it all."""
        if mask is None and cu_seqlens is None:
            return None
        allowed = torch.ones(length, length, dtype=torch.bool, device=device)
        if self.causal:
            allowed = allowed.tril()
        if cu_seqlens is not None:
            start = row_starts(cu_seqlens, length)
            allowed = allowed & (start[:, None] == start)
        if mask is not None:
            # A padded query may see itself: a row of the softmax with nothing in it would be NaN.
            itself = torch.eye(length, dtype=torch.bool, device=device)
            allowed = (allowed & mask[:, None, None, :]) | itself
        return allowed

    # Not in inference mode, whatever the caller is in: a tensor made there could not be changed outside it.
    @torch.inference_mode(False)
    @torch.no_grad()
    def init_state(self, batch: int, max_length: int | None = None) -> AttentionState:
        """A cache of keys and values; see :meth:`hyena.mixers.Mixer.init_state`."""
        if not self.causal:
            raise ValueError("attention with causal=False needs the whole input at once, so it cannot be stepped")
        length, weight = self.room(batch, max_length), self.in_proj.weight
        shape = (batch, self.num_kv_heads, length, self.head_dim)
        at: dict[str, Any] = {"device": weight.device, "dtype": weight.dtype}
        keys, values = torch.zeros(shape, **at), torch.zeros(shape, **at)
        keep = torch.zeros(batch, length, dtype=torch.bool, device=weight.device)
        return AttentionState(0, length, keys, values, keep)

    @torch.no_grad()
    def _continue(
        self,
        u: Tensor,
        mask: Tensor | None,
        cu_seqlens: Tensor | None,
        max_seqlen: int | None,
        state: AttentionState,
    ) -> Tensor:
        """Attention of the next positions to themselves and to all before."""
        if not isinstance(state, AttentionState):
            raise ValueError(f"expected an AttentionState from this mixer's init_state, got a {type(state).__name__}")
        self.check_next(u, state, mask, cu_seqlens, max_seqlen)
        if self.training and self.dropout > 0:
            raise ValueError(f"this attention is in training mode with dropout={self.dropout}; call eval() first")
        if mask is not None:
            u = torch.where(mask[..., None], u, 0.0)
        start, n = state.position, u.size(1)
        stop = start + n
        q, k, v = self._heads(u, self._positions(u, start=start))
        state.keys[:, :, start:stop], state.values[:, :, start:stop] = k, v
        state.keep[:, start:stop] = True if mask is None else mask
        state.position = stop
        state.may_pad = state.may_pad or mask is not None
        keep: Tensor | None = state.keep[:, :stop]
        if not torch.compiler.is_compiling() and (not state.may_pad or state.keep[:, :stop].all()):
            keep = None
        y = attend(q, state.keys[:, :, :stop], state.values[:, :, :stop], keep)
        return ops.linear(y.transpose(1, 2).flatten(2), self.out_proj)

    def extend(self, l_max: int, mode: str = "continue") -> None:
        """Lets rows be longer.

        Args:
            l_max: the longest row from now on.
            mode: ``"continue"`` leaves everything as it is; ``"stretch"`` divides rotary positions by ``new / old``
                more than before (linear interpolation, arXiv 2306.15595).

        Raises:
            ValueError: ``"stretch"`` without rotary positions.
        """
        check_extension(l_max, mode)
        if mode == "stretch":
            if self.rotary is None or self.l_max is None:
                raise ValueError("mode='stretch' is for attention with rotary positions and an l_max")
            self.rotary = dataclasses.replace(self.rotary, scaling=self.rotary.scaling * l_max / self.l_max)
        self.l_max = l_max

    @property
    def units(self) -> int:
        """Heads, if keys and values have as many as queries."""
        return self.num_heads if self.num_heads == self.num_kv_heads else 1

    def core(self, units: range) -> Attention:
        """The attention of some heads; see :meth:`hyena.mixers.Mixer.core`."""
        if self.num_heads != self.num_kv_heads:
            raise ValueError(
                f"attention with num_kv_heads={self.num_kv_heads} below num_heads={self.num_heads} cannot be spread "
                "over processes by heads"
            )
        copy: Attention = self._core(3 * len(units) * self.head_dim)
        copy.num_heads = copy.num_kv_heads = len(units)
        return copy

    def to_matrix(self, u: Tensor, mask: Tensor | None = None, channels: slice = slice(None)) -> Tensor:
        """The attention weights of each channel's head, ``(B, C, L, L)``: what multiplies the value projection."""
        q, k, _ = self._heads(u, self._positions(u))
        scores = q.double() @ shared(k, self.num_heads).double().transpose(2, 3) * q.size(3) ** -0.5
        allowed = self._allowed(u.size(1), mask, None, u.device)
        if allowed is None and self.causal:
            allowed = torch.ones(u.size(1), u.size(1), dtype=torch.bool, device=u.device).tril()
        if allowed is not None:
            scores = scores.masked_fill(~allowed, -torch.inf)
        weights = scores.softmax(-1).to(ops.compute_dtype(u))
        return weights.repeat_interleave(self.d_model // self.num_heads, dim=1)[:, channels]

    def extra_repr(self) -> str:
        rotary = "" if self.rotary is None else f", rotary_base={self.rotary.base}, scaling={self.rotary.scaling}"
        heads = f"num_heads={self.num_heads}, num_kv_heads={self.num_kv_heads}"
        return f"d_model={self.d_model}, l_max={self.l_max}, {heads}, causal={self.causal}{rotary}"


def row_starts(cu_seqlens: Tensor, length: int) -> Tensor:
    """Where the packed row of each position starts: ``(L,)``."""
    at = torch.arange(length, device=cu_seqlens.device)
    row = torch.searchsorted(cu_seqlens.to(at.dtype), at, right=True) - 1
    return cu_seqlens.to(at.dtype)[row]
