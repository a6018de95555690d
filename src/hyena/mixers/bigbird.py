"""BigBird: attention to a window of blocks, to a few global ones and to some at random.

Dimensions: B batch, L length, D channels (d_model), M heads, E channels of a head, S positions of a block, C blocks, T
room of a state, n new positions.
"""

from __future__ import annotations

import dataclasses
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hyena import ops
from hyena.mixers._arguments import check_counts, check_flags, heads_of
from hyena.mixers._blocks import cut
from hyena.mixers.rows import RowMixer, take
from hyena.mixers.state import State


@dataclasses.dataclass
class BigBirdState(State):
    """Keys and values of one :class:`BigBird`.

    Args:
        keys: ``(B, T, 2 D)``, keys and values.
        count: ``(B,)``, kept positions so far.
    """

    keys: Tensor
    count: Tensor


class BigBird(RowMixer):
    """Block-sparse attention: a window, global blocks and random ones (Zaheer et al. 2020, arXiv 2007.14062).

    Rows are cut into blocks of S positions. A block of queries attends to its window (causal: the ``window`` blocks up
    to its own; two-sided: as many to both sides of it), to the first ``num_global`` blocks and to ``num_random`` that a
    hash of its number and ``seed`` draws from the rest. Two-sided, the global blocks also attend to everything. Time
    and memory grow as ``L S (window + num_global + num_random)``.

    Each block's keys are gathered, or ``flex_attention`` finds them by :meth:`block_mask`.

    Args:
        d_model: D.
        l_max: longest row. Two-sided random blocks are drawn from so many positions.
        block: S.
        window: blocks of the window; odd if two-sided.
        num_global: how many of the first blocks all attend to.
        num_random: random blocks of each block of queries, at most: those drawn twice, or in the window, count once.
        num_heads: M, a divisor of D. If missing, heads have 64 channels, or there is one where 64 does not divide D.
        seed: of the random blocks.
        flex: compute whole rows by ``torch.nn.attention.flex_attention``, compiled on a GPU. On a CPU it has no
            gradients and forms all scores.
        causal: no output sees a later input.
        dropout: of the mixed values before the output projection.
        bias: whether the projections have a bias.

    Raises:
        TypeError: arguments of another type.
        ValueError: numbers that do not fit together, with what would.
    """

    needs_positions = True
    compacts = True
    state_class = BigBirdState

    def __init__(
        self,
        d_model: int,
        l_max: int,
        *,
        block: int = 64,
        window: int = 3,
        num_global: int = 1,
        num_random: int = 2,
        num_heads: int | None = None,
        seed: int = 0,
        flex: bool = False,
        causal: bool = True,
        dropout: float = 0.0,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(d_model, l_max, causal=causal, dropout=dropout, bias=bias)
        check_counts(l_max=l_max, block=block, window=window)
        check_flags(flex=flex)
        for name, value in {"num_global": num_global, "num_random": num_random, "seed": seed}.items():
            if isinstance(value, bool) or not isinstance(value, int):
                raise TypeError(f"{name} must be an integer, got {value!r}")
            if value < 0:
                raise ValueError(f"{name} must be at least 0, got {value}")
        if not causal and window % 2 == 0:
            raise ValueError(f"a two-sided window has an odd number of blocks, got window={window}: use {window + 1}")
        at: dict[str, Any] = {"device": device, "dtype": dtype}
        self.num_heads, self.block, self.window = heads_of(d_model, num_heads), block, window
        self.most_blocks = -(-l_max // block)
        self.num_global, self.num_random, self.seed, self.flex = num_global, num_random, seed, flex
        self.in_proj = nn.Linear(d_model, 3 * d_model, bias=bias, **at)
        self.out_proj = nn.Linear(d_model, d_model, bias=bias, **at)

    def table(self, blocks: int, device: torch.device | str | None = None) -> Tensor:
        """Which blocks of keys each of so many blocks of queries attends to, ``(C, k)`` int64; -1 where there is none.

        Global blocks of queries, which attend to everything if two-sided, are here as the others.
        """
        return self._seen_by(torch.arange(blocks, device=device), blocks)

    def _seen_by(self, own: Tensor, blocks: int) -> Tensor:
        """Rows of :meth:`table` for blocks of queries ``(…)``: ``(…, k)``."""
        own, device = own[..., None], own.device
        reach = self.window - 1 if self.causal else self.window // 2
        window = own + torch.arange(-reach, 1 if self.causal else reach + 1, device=device)
        first = torch.arange(self.num_global, device=device).expand(*own.shape[:-1], -1)
        draw = torch.arange(self.num_random, device=device)
        count = (own - reach if self.causal else torch.full_like(own, self.most_blocks)) - self.num_global
        drawn = _hash(own * self.num_random + draw + self.seed * 7919) % count.clamp_min(1) + self.num_global
        drawn = torch.where(count > 0, drawn, -1)
        found = torch.cat([window, first, drawn], dim=-1)
        found = torch.where((found < 0) | (found > (own if self.causal else blocks - 1)), -1, found).sort(-1).values
        twice = torch.cat([torch.zeros_like(found[..., :1], dtype=torch.bool), found[..., 1:] == found[..., :-1]], -1)
        return torch.where(twice, -1, found)

    def allowed(self, length: int, device: torch.device | str | None = None) -> Tensor:
        """Which key each query of a row attends to, ``(L, L)`` bool: the definition, for small rows."""
        blocks = -(-length // self.block)
        at = torch.arange(length, device=device)
        seen = self._blocks_seen(blocks, device)[at // self.block][:, at // self.block]
        return seen & (at <= at[:, None]) if self.causal else seen

    def _blocks_seen(self, blocks: int, device: torch.device | str | None) -> Tensor:
        """``(C, C)`` bool."""
        seen = _as_mask(self.table(blocks, device), blocks)
        if not self.causal:
            seen[: self.num_global] = True
        return seen

    def block_mask(self, length: int, kept: Tensor | None = None, device: torch.device | str | None = None) -> Any:
        """The mask for ``torch.nn.attention.flex_attention``; ``kept`` ``(B,)`` says how many of ``length`` count."""
        from torch.nn.attention.flex_attention import create_block_mask

        seen = self._blocks_seen(-(-length // self.block), device)
        size, causal = self.block, self.causal

        def may(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
            allowed = seen[q // size, k // size]
            if causal:
                return allowed & (k <= q)
            return allowed if kept is None else allowed & (k < kept[b]) | (k == q)

        rows = None if kept is None or causal else kept.size(0)
        where = torch.device("cpu" if device is None else device)
        return create_block_mask(may, rows, None, length, length, device=str(where))

    def mix(self, u: Tensor, mask: Tensor | None, cu_seqlens: Tensor | None, longest: int, state: Any) -> Tensor:
        """Mixed values ``(B, L, D)``."""
        z = ops.linear(u, self.in_proj)
        kept = None if mask is None else mask.sum(1)
        with ops.without_autocast(u.device):
            if state is not None:
                return self._next(z, kept, state)
            q, k, v = z.chunk(3, dim=2)
            return self._attend(q, k, v, kept)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, kept: Tensor | None) -> Tensor:
        """Attention ``(B, L, D)`` of rows from their start."""
        if not self.flex or q.numel() == 0:
            return self._gathered(q, k, v, kept)
        if q.device.type == "cpu" and torch.is_grad_enabled() and any(t.requires_grad for t in (q, k, v)):
            raise ValueError("flex_attention has no gradients on a CPU: build this BigBird with flex=False to train it")
        q, k, v = (self._heads(t) for t in (q, k, v))
        y = _flex(q.device.type)(q, k, v, block_mask=self.block_mask(q.size(2), kept, q.device))
        return y.transpose(1, 2).flatten(2)

    def _heads(self, x: Tensor) -> Tensor:
        """``(…, n, D)`` as ``(…, M, n, E)``."""
        return x.unflatten(-1, (self.num_heads, -1)).transpose(-2, -3)

    def _gathered(self, q: Tensor, k: Tensor, v: Tensor, kept: Tensor | None) -> Tensor:
        """Every block of queries with the keys that it attends to, the blocks of all rows as one batch."""
        batch, length, size = q.size(0), q.size(1), self.block
        table = self.table(-(-length // size), q.device)
        blocks = [cut(t, size) for t in (q, k, v)]  # (B, C, S, D)
        at = torch.arange(size, device=q.device)
        place = (table[..., None] * size + at).flatten(1)[:, None]  # (C, 1, k S), negative where there is none
        own = (torch.arange(table.size(0), device=q.device)[:, None] * size + at)[..., None]  # (C, S, 1)
        seen = (place >= 0) & (place < length)
        if self.causal:
            seen = seen & (place <= own)
        elif kept is not None:
            seen = seen & (place < kept[:, None, None, None])
        # Padding may see itself: a row of the softmax with nothing in it would be NaN.
        seen = (seen | (place == own)).expand(batch, -1, -1, -1).flatten(0, 1)[:, None]  # (B C, 1, S, k S)
        index = table.clamp_min(0).flatten()
        keys, values = (  # (B C, k S, D)
            t.index_select(1, index).unflatten(1, table.shape).flatten(2, 3).flatten(0, 1) for t in blocks[1:]
        )
        q_blocks = blocks[0].flatten(0, 1)
        y = self._softmax(q_blocks, keys, values, seen)
        y = y.unflatten(0, (batch, table.size(0))).flatten(1, 2)[:, :length]
        first = min(self.num_global * size, length)
        if self.causal or first == 0:
            return y
        everything = None
        if kept is not None:
            at = torch.arange(length, device=q.device)
            everything = (at < kept[:, None])[:, None, None] | (at == at[:first, None])
        return torch.cat([self._softmax(q[:, :first], k, v, everything), y[:, first:]], dim=1)

    def _softmax(self, q: Tensor, k: Tensor, v: Tensor, seen: Tensor | None) -> Tensor:
        """Attention ``(B, n, D)`` under a mask ``(B, 1, n, keys)``."""
        q, k, v = (self._heads(t) for t in (q, k, v))
        return F.scaled_dot_product_attention(q, k, v, attn_mask=seen).transpose(1, 2).flatten(2)

    def _next(self, z: Tensor, kept: Tensor | None, state: BigBirdState) -> Tensor:
        """Attention of the next positions to themselves and to all before."""
        n, d = z.size(1), self.d_model
        q, new = z.split([d, 2 * d], dim=2)
        place = state.count[:, None] + torch.arange(n, device=z.device)
        # Padding, which comes last, is written too; it is not counted, and what comes next overwrites it.
        state.keys.scatter_(1, place[..., None].expand_as(new), new.to(state.keys.dtype))
        state.count += n if kept is None else kept
        if n == 1:
            return self._one(q, place, state.keys)
        parts = zip(q.split(self.block, dim=1), place.split(self.block, dim=1), strict=True)
        return torch.cat([self._some(some, where, state.keys) for some, where in parts], dim=1)

    def _one(self, q: Tensor, place: Tensor, keys: Tensor) -> Tensor:
        """Attention ``(B, 1, D)`` of one query a row to the blocks that it sees, which are gathered."""
        size, room = self.block, keys.size(1)
        table = self._seen_by(place[:, 0] // size, -(-room // size))  # (B, k)
        at = (table[..., None] * size + torch.arange(size, device=q.device)).flatten(1)  # (B, k S)
        found = take(keys, at.clamp(0, room - 1))
        k, v = found.to(q.dtype).chunk(2, dim=2)
        return self._softmax(q, k, v, ((at >= 0) & (at <= place))[:, None, None])

    def _some(self, q: Tensor, place: Tensor, keys: Tensor) -> Tensor:
        """Attention ``(B, n, D)`` of a block's worth of queries to all keys, those that they do not see masked."""
        room = keys.size(1)
        blocks, at = -(-room // self.block), torch.arange(room, device=q.device)
        seen = _as_mask(self._seen_by(place // self.block, blocks), blocks)  # (B, n, C)
        k, v = keys.to(q.dtype).chunk(2, dim=2)
        return self._softmax(q, k, v, (seen[..., at // self.block] & (at <= place[..., None]))[:, None])

    def new_state(self, batch: int, length: int) -> BigBirdState:
        weight = self.in_proj.weight
        keys = torch.zeros(batch, length, 2 * self.d_model, dtype=weight.dtype, device=weight.device)
        return BigBirdState(0, length, keys, torch.zeros(batch, dtype=torch.long, device=weight.device))

    def extra_repr(self) -> str:
        return (
            f"d_model={self.d_model}, l_max={self.l_max}, block={self.block}, window={self.window}, "
            f"num_global={self.num_global}, num_random={self.num_random}, num_heads={self.num_heads}, "
            f"causal={self.causal}"
        )


def _as_mask(table: Tensor, blocks: int) -> Tensor:
    """Which of so many blocks are in each row of a table: ``(…, k)`` to ``(…, C)`` bool."""
    seen = torch.zeros(*table.shape[:-1], blocks + 1, dtype=torch.bool, device=table.device)
    return seen.scatter(-1, torch.where(table < 0, blocks, table), True)[..., :blocks]


def _hash(x: Tensor) -> Tensor:
    """Mixes the bits of small integers: 31-bit numbers that look random, the same on every device."""
    for _ in range(3):
        x = ((x ^ (x >> 16)) * 0x45D9F3B) & 0x7FFFFFFF
    return x ^ (x >> 16)


@lru_cache(maxsize=2)
def _flex(device: str) -> Any:
    """``flex_attention``, compiled for a GPU: it forms all scores otherwise."""
    from torch.nn.attention.flex_attention import flex_attention

    return flex_attention if device == "cpu" else torch.compile(flex_attention)
