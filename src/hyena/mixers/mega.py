"""Mega: a moving average of the input, gated attention of one head inside chunks of it, and gates around both.

Dimensions: B batch, L length, D channels (d_model), Z channels of queries and keys, V of values, S positions of a
chunk, C chunks, n new positions.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hyena import ops
from hyena.conv.long import FilterFactory, LongConv, Past
from hyena.conv.online import Online
from hyena.filters import EMA
from hyena.mixers._arguments import check_counts
from hyena.mixers._blocks import cut, hold, join, pick
from hyena.mixers.rows import RowMixer, take, together
from hyena.mixers.state import State


@dataclasses.dataclass
class MegaState(State):
    """The decoding state of one :class:`Mega`.

    Args:
        held: ``(B, S, Z + V)``, keys and values of the chunk that is not full.
        count: ``(B,)``, kept positions so far.
        memory: of the moving average.
        online: its filter when the state was made.
    """

    held: Tensor
    count: Tensor
    memory: list[Tensor]
    online: Online


class Mega(RowMixer):
    """Moving-average equipped gated attention (Ma et al. 2022, arXiv 2209.10655, equations 9 to 17).

    ``x = silu(EMA(u))`` gives queries and keys of one head, scaled and shifted, a reset gate ``g`` and an update gate
    ``f``; values are ``silu(W_v u)``. ``o`` is softmax attention with a trained weight of each lag, inside chunks of S
    positions (Mega-chunk). Then ``h = silu(W_h x + U (g o) + b)`` and ``y = f h + (1 - f) u``. Time and memory grow
    with ``L S``, and a step costs the same anywhere.

    Args:
        d_model: D.
        l_max: longest row.
        chunk: S.
        key_channels: Z; ``D // 2`` and at least 1 if missing.
        value_channels: V; ``2 D`` if missing.
        filter: of the moving average; see :class:`hyena.conv.LongConv`.
        causal: no output sees a later input. Otherwise the average is two-sided, and a chunk sees all of itself.
        dropout: of the gated attention before ``U``, which is ``out_proj``.
        bias: whether the projections have a bias.

    Raises:
        TypeError: arguments of another type.
        ValueError: numbers out of range.
    """

    state_class = MegaState
    no_decay = ("scale", "shift", "lag_bias")

    def __init__(
        self,
        d_model: int,
        l_max: int,
        *,
        chunk: int = 128,
        key_channels: int | None = None,
        value_channels: int | None = None,
        filter: nn.Module | FilterFactory = EMA,
        causal: bool = True,
        dropout: float = 0.0,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(d_model, l_max, causal=causal, dropout=dropout, bias=bias)
        keys = max(d_model // 2, 1) if key_channels is None else key_channels
        values = 2 * d_model if value_channels is None else value_channels
        check_counts(l_max=l_max, chunk=chunk, key_channels=keys, value_channels=values)
        at: dict[str, Any] = {"device": device, "dtype": dtype}
        self.chunk, self.key_channels, self.value_channels = min(chunk, l_max), keys, values
        self.conv = LongConv(d_model, l_max, filter=filter, causal=causal, **at)
        self.in_proj = nn.Linear(d_model, values, bias=bias, **at)
        self.gates = nn.Linear(d_model, 2 * d_model + keys + values, bias=bias, **at)
        self.out_proj = nn.Linear(values, d_model, bias=bias, **at)
        self.scale = nn.Parameter(torch.empty(2, keys, **at))
        self.shift = nn.Parameter(torch.empty(2, keys, **at))
        # Lags 0 … S-1; two-sided -(S-1) … S-1.
        self.lag_bias = nn.Parameter(torch.empty(self.chunk if causal else 2 * self.chunk - 1, **at))
        self._start()

    def reset_parameters(self) -> None:
        """Initialises every parameter again."""
        super().reset_parameters()
        self._start()

    def _start(self) -> None:
        nn.init.ones_(self.scale)
        nn.init.zeros_(self.shift)
        nn.init.normal_(self.lag_bias, std=0.02)

    def mix(self, u: Tensor, mask: Tensor | None, cu_seqlens: Tensor | None, longest: int, state: Any) -> Tensor:
        """What ``_finish`` puts together: gated attention, ``W_h x``, and the update gate, ``(B, L, V + 2 D)``."""
        if state is None:
            x = self.conv(u)
        else:
            memory = state.memory[0]
            x = self.conv(u.to(memory.real.dtype), past=Past(state.online, memory, state.position)).to(u.dtype)
        sizes = [self.d_model, self.key_channels, self.value_channels, self.d_model]
        update, z, reset, h = ops.linear(F.silu(x), self.gates).split(sizes, dim=2)
        v = F.silu(ops.linear(u, self.in_proj))
        o = F.silu(reset) * self._attention(F.silu(z), v, mask, state).to(v.dtype)
        return torch.cat([o, h, torch.sigmoid(update)], dim=2)

    def _finish(self, u: Tensor, y: Tensor, project: Callable[[Tensor], Tensor]) -> Tensor:
        o, h, update = y.split([self.value_channels, self.d_model, self.d_model], dim=2)
        h = F.silu(h + project(self.dropout(o)))
        return torch.lerp(u.to(h.dtype), h, update.to(h.dtype))

    def _attention(self, z: Tensor, v: Tensor, mask: Tensor | None, state: MegaState | None) -> Tensor:
        """Attention ``(B, L, V)`` inside the chunks of each row, which its kept positions alone are counted for."""
        with ops.without_autocast(z.device):
            dtype, n = ops.compute_dtype(z), z.size(1)
            z, v, scale, shift = (t.to(dtype) for t in (z, v, self.scale, self.shift))
            q, k = (z * scale[i] + shift[i] for i in (0, 1))
            order = None if mask is None else together(mask)
            if order is not None:
                q, k, v = (take(t, order) for t in (q, k, v))
            kept = None if mask is None else mask.sum(1)
            if state is None:
                o = self._rows_in_chunks(q, k, v, kept)
            else:
                o = self._next_in_chunks(q, torch.cat([k, v], dim=2), kept, state)
            return o[:, :n] if order is None else take(o[:, :n], order.argsort(dim=1))

    def _rows_in_chunks(self, q: Tensor, k: Tensor, v: Tensor, kept: Tensor | None) -> Tensor:
        size, length = max(min(self.chunk, q.size(1)), 1), q.size(1)
        at = torch.arange(size, device=q.device)
        q, k, v = (cut(t, size) for t in (q, k, v))
        there = None
        if not self.causal:  # a causal query sees no padding, since that comes last
            end = torch.full((1,), length, device=q.device) if kept is None else kept
            place = at + size * torch.arange(q.size(1), device=q.device)[:, None]
            there = place < end[:, None, None]
        return self._attend(q, k, v, at, there).flatten(1, 2)

    def _next_in_chunks(self, q: Tensor, new: Tensor, kept: Tensor | None, state: MegaState) -> Tensor:
        """Attention of the next positions: of one to what is held, of more in chunks that begin with it."""
        n, size = q.size(1), self.chunk
        blocks = join(state.held, state.count, new)
        k, v = blocks.split([self.key_channels, self.value_channels], dim=3)
        if n == 1:
            o = self._attend(q[:, None], k, v, (state.count % size)[:, None, None], None)[:, 0]
        else:
            place = torch.arange(size, device=q.device)
            q = join(torch.zeros_like(state.held[..., : self.key_channels]), state.count, q)
            o = pick(self._attend(q, k, v, place, None), state.count, n)
        added = state.count % size + (n if kept is None else kept)
        state.held.copy_(hold(blocks, added // size))
        state.count += n if kept is None else kept
        return o

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, at: Tensor, there: Tensor | None) -> Tensor:
        """Softmax attention in each chunk, of queries at places ``at`` of it to the keys that are ``there``."""
        place = torch.arange(k.size(2), device=k.device)
        lag = at[..., None] - place  # (…, queries, S)
        first = 0 if self.causal else self.chunk - 1
        bias = self.lag_bias.to(q.dtype)[(lag + first).clamp_min(0)]
        scores = q @ k.transpose(2, 3) * self.key_channels**-0.5 + bias
        if self.causal:
            scores = scores.masked_fill(lag < 0, -torch.inf)
        if there is not None:  # padding may see itself: a row of the softmax with nothing in it would be NaN
            scores = scores.masked_fill(~(there[..., None, :] | (lag == 0)), -torch.inf)
        return scores.softmax(-1) @ v

    def new_state(self, batch: int, length: int) -> MegaState:
        online, weight = self.conv.online([self.d_model], length), self.scale
        shape = (batch, self.chunk, self.key_channels + self.value_channels)
        held = torch.zeros(shape, dtype=ops.compute_dtype(weight), device=weight.device)
        count = torch.zeros(batch, dtype=torch.long, device=weight.device)
        return MegaState(0, length, held, count, online.allocate(batch), online)

    def extra_repr(self) -> str:
        return f"d_model={self.d_model}, l_max={self.l_max}, chunk={self.chunk}, causal={self.causal}"
