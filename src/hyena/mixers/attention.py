"""Attention as a mixer: softmax attention by ``F.scaled_dot_product_attention``, with a cache of keys and values.

Dimensions: B batch, L length, D channels (d_model), M heads, T room of a state, n new positions.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hyena import ops
from hyena.mixers._arguments import check_counts, check_flags, heads_of
from hyena.mixers.base import Mixer, State


@dataclasses.dataclass
class AttentionState(State):
    """Keys and values of one :class:`Attention`.

    Args:
        keys, values: ``(B, M, T, D/M)``.
        keep: ``(B, T)`` bool, which of them are not padding.
    """

    keys: Tensor
    values: Tensor
    keep: Tensor


class Attention(Mixer):
    """Multi-head self-attention by ``F.scaled_dot_product_attention``, called as a Hyena operator is.

    For comparing, and for models that keep some attention. It does not know the order of its inputs: a model adds
    positions. Packed rows are kept apart by an ``L x L`` mask.

    Args:
        d_model: D.
        l_max: longest row; None for any length, and then states need a ``max_length``.
        num_heads: M, a divisor of D. If missing, heads have 64 channels, or there is one where 64 does not divide D.
        causal: no output sees a later input.
        dropout: of the attention weights.
        bias: whether the projections have a bias.
    """

    needs_positions = True

    def __init__(
        self,
        d_model: int,
        l_max: int | None = None,
        *,
        num_heads: int | None = None,
        causal: bool = True,
        dropout: float = 0.0,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        num_heads = heads_of(d_model, num_heads)
        if l_max is not None:
            check_counts(l_max=l_max)
        check_flags(causal=causal, bias=bias)
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout must be a number in [0, 1), got {dropout}")
        at: dict[str, Any] = {"device": device, "dtype": dtype}
        self.d_model, self.l_max, self.num_heads = d_model, l_max, num_heads
        self.causal, self.dropout = causal, dropout
        self.in_proj = nn.Linear(d_model, 3 * d_model, bias=bias, **at)
        self.out_proj = nn.Linear(d_model, d_model, bias=bias, **at)

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
            return self._continue(u, mask, cu_seqlens, state)
        flat = u.dim() == 2 and cu_seqlens is not None
        if flat:
            u = u[None]
        if self.l_max is not None:
            self.check_rows(u, cu_seqlens, max_seqlen)
        ops.check_row(u, mask, cu_seqlens)
        if mask is not None:  # a NaN in the padding would reach the rest as 0 x NaN
            u = torch.where(mask[..., None], u, 0.0)
        q, k, v = self._heads(u)
        allowed = self._allowed(u.size(1), mask, cu_seqlens, u.device)
        y = F.scaled_dot_product_attention(
            q,
            k,
            v,
            attn_mask=allowed,
            dropout_p=self.dropout if self.training else 0.0,
            is_causal=allowed is None and self.causal,
        )  # (B, M, L, D/M)
        y = self.out_proj(y.transpose(1, 2).flatten(2))
        return y[0] if flat else y

    def _heads(self, u: Tensor) -> tuple[Tensor, ...]:
        """Query, key and value, ``(B, M, L, D/M)`` each."""
        return tuple(p.unflatten(2, (self.num_heads, -1)).transpose(1, 2) for p in self.in_proj(u).chunk(3, dim=2))

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
        shape = (batch, self.num_heads, length, self.d_model // self.num_heads)
        at: dict[str, Any] = {"device": weight.device, "dtype": weight.dtype}
        keys, values = torch.zeros(shape, **at), torch.zeros(shape, **at)
        keep = torch.zeros(batch, length, dtype=torch.bool, device=weight.device)
        return AttentionState(0, length, keys, values, keep)

    @torch.no_grad()
    def _continue(self, u: Tensor, mask: Tensor | None, cu_seqlens: Tensor | None, state: AttentionState) -> Tensor:
        """Attention of the next positions to themselves and to all before."""
        if not isinstance(state, AttentionState):
            raise ValueError(f"expected an AttentionState from this mixer's init_state, got a {type(state).__name__}")
        self.check_next(u, state, mask, cu_seqlens)
        if self.training and self.dropout > 0:
            raise ValueError(f"this attention is in training mode with dropout={self.dropout}; call eval() first")
        if mask is not None:
            u = torch.where(mask[..., None], u, 0.0)
        start, n = state.position, u.size(1)
        stop = start + n
        q, k, v = self._heads(u)
        state.keys[:, :, start:stop], state.values[:, :, start:stop] = k, v
        state.keep[:, start:stop] = True if mask is None else mask
        state.position = stop
        allowed = None  # one new position sees all that came
        if n > 1 or torch.compiler.is_compiling() or not state.keep[:, :stop].all():
            at = torch.arange(stop, device=u.device)
            # A padded query may see itself, as in forward.
            allowed = (at <= at[start:, None]) & state.keep[:, None, None, :stop] | (at == at[start:, None])
        keys, values = state.keys[:, :, :stop].to(q.dtype), state.values[:, :, :stop].to(q.dtype)
        y = F.scaled_dot_product_attention(q, keys, values, attn_mask=allowed)
        return self.out_proj(y.transpose(1, 2).flatten(2))

    def to_matrix(self, u: Tensor, mask: Tensor | None = None, channels: slice = slice(None)) -> Tensor:
        """The attention weights of each channel's head, ``(B, C, L, L)``: what multiplies the value projection."""
        q, k, _ = self._heads(u)
        scores = q.double() @ k.double().transpose(2, 3) * q.size(3) ** -0.5
        allowed = self._allowed(u.size(1), mask, None, u.device)
        if allowed is None and self.causal:
            allowed = torch.ones(u.size(1), u.size(1), dtype=torch.bool, device=u.device).tril()
        if allowed is not None:
            scores = scores.masked_fill(~allowed, -torch.inf)
        weights = scores.softmax(-1).to(ops.compute_dtype(u))
        return weights.repeat_interleave(self.d_model // self.num_heads, dim=1)[:, channels]

    def extra_repr(self) -> str:
        return f"d_model={self.d_model}, l_max={self.l_max}, num_heads={self.num_heads}, causal={self.causal}"


def row_starts(cu_seqlens: Tensor, length: int) -> Tensor:
    """Where the packed row of each position starts: ``(L,)``."""
    at = torch.arange(length, device=cu_seqlens.device)
    row = torch.searchsorted(cu_seqlens.to(at.dtype), at, right=True) - 1
    return cu_seqlens.to(at.dtype)[row]
