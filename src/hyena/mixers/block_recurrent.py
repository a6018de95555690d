"""Block-recurrent attention: a window of keys, and state vectors that carry on what leaves it.

Dimensions: B batch, L length, D channels (d_model), M heads, E channels of a head, W positions of a block, C blocks, S
state vectors, n new positions.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hyena import ops
from hyena.mixers._arguments import check_counts, heads_of
from hyena.mixers._blocks import cut, hold, join, pick
from hyena.mixers.rows import RowMixer
from hyena.mixers.state import State

GATES = ("fixed", "lstm")


@dataclasses.dataclass
class BlockRecurrentState(State):
    """The decoding state of one :class:`BlockRecurrent`.

    Args:
        before, held: ``(B, W, 2 D)``, keys and values of the last full block and of the one that is not full.
        vectors: ``(B, S, D)``, the state vectors that the latter reads.
        count: ``(B,)``, kept positions so far.
    """

    before: Tensor
    held: Tensor
    vectors: Tensor
    count: Tensor


class BlockRecurrent(RowMixer):
    """Attention in a window, and to state vectors that each block changes (Hutchins et al. 2022, arXiv 2203.07852).

    Rows are cut into blocks of W positions. A position attends to the W positions up to itself, with a trained weight
    of each lag and head, and to S state vectors; both results go through the output projection. The vectors attend to
    themselves and to the block's positions, whose keys and values they share, and a gate mixes the result into them
    (figure 2, equations 1 to 4); the next block reads them. Blocks follow each other, so that it costs ``L (W + S) D``
    in ``L / W`` steps, and a step in decoding the same anywhere.

    Args:
        d_model: D.
        l_max: longest row; None for any length, and then states need a ``max_length``.
        block: W.
        num_states: S.
        num_heads: M, a divisor of D. If missing, heads have 64 channels, or there is one where 64 does not divide D.
        gate: "fixed", a trained convex combination for each channel, or "lstm".
        causal: must be True: the vectors know the past alone.
        dropout: of the mixed values before the output projection.
        bias: whether the projections have a bias.

    Raises:
        TypeError: arguments of another type.
        ValueError: numbers that do not fit together, ``causal=False``.
    """

    compacts = True
    state_class = BlockRecurrentState
    no_decay = ("vectors", "places", "lag_bias", "gate_bias")

    def __init__(
        self,
        d_model: int,
        l_max: int | None = None,
        *,
        block: int = 128,
        num_states: int = 64,
        num_heads: int | None = None,
        gate: str = "fixed",
        causal: bool = True,
        dropout: float = 0.0,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(d_model, l_max, causal=causal, dropout=dropout, bias=bias)
        check_counts(block=block, num_states=num_states)
        if not causal:
            raise ValueError(
                "BlockRecurrent carries state vectors from block to block, so it knows the past alone: causal=False is "
                "not possible; BigBird and Mega are two-sided"
            )
        if gate not in GATES:
            raise ValueError(f"gate must be one of {GATES}, got {gate!r}")
        at: dict[str, Any] = {"device": device, "dtype": dtype}
        self.num_heads, self.block, self.gate = heads_of(d_model, num_heads), block, gate
        self.in_proj = nn.Linear(d_model, 4 * d_model, bias=bias, **at)  # queries for each kind, keys, values
        self.norm = nn.LayerNorm(d_model, **at)
        self.state_proj = nn.Linear(d_model, 4 * d_model, bias=bias, **at)
        self.state_out = nn.Linear(2 * d_model, d_model if gate == "fixed" else 3 * d_model, bias=bias, **at)
        self.out_proj = nn.Linear(2 * d_model, d_model, bias=bias, **at)
        self.vectors = nn.Parameter(torch.empty(num_states, d_model, **at))  # before the first block
        self.places = nn.Parameter(torch.empty(num_states, d_model, **at))  # tells vectors apart
        self.lag_bias = nn.Parameter(torch.empty(self.num_heads, block, **at))
        self.gate_bias = nn.Parameter(torch.empty(d_model, **at)) if gate == "fixed" else None
        self._start()

    def reset_parameters(self) -> None:
        """Initialises every parameter again."""
        super().reset_parameters()
        self._start()

    def _start(self) -> None:
        nn.init.normal_(self.vectors)
        nn.init.normal_(self.places, std=0.02)
        nn.init.normal_(self.lag_bias, std=0.02)
        if self.gate_bias is not None:  # keeps about 0.7 of a vector
            nn.init.normal_(self.gate_bias, mean=1.0, std=0.1)

    def mix(self, u: Tensor, mask: Tensor | None, cu_seqlens: Tensor | None, longest: int, state: Any) -> Tensor:
        """Attention to the window and to the state vectors, side by side, ``(B, L, 2 D)``."""
        z = ops.linear(u, self.in_proj)
        with ops.without_autocast(u.device):
            z = z.to(ops.compute_dtype(z))
            if state is None:
                y, _, _ = self._blocks(cut(z, self.block), None)
                return y.flatten(1, 2)[:, : u.size(1)]
            return self._next(z, mask, state)

    def _next(self, z: Tensor, mask: Tensor | None, state: BlockRecurrentState) -> Tensor:
        """:meth:`mix` of the next positions, in blocks that begin with what is held."""
        n, width, count = z.size(1), self.d_model, state.count
        if n == 1:
            return self._one(z, mask, state)
        held = torch.cat([torch.zeros_like(state.held), state.held], dim=2)
        blocks = join(held, count, z)
        added = torch.full_like(count, n) if mask is None else mask.sum(1)
        full = (count % self.block + added) // self.block
        y, vectors, keys = self._blocks(blocks, state, full)
        state.before.copy_(hold(keys, full))
        state.held.copy_(hold(blocks[..., 2 * width :], full))
        state.vectors.copy_(vectors)
        y = pick(y, count, n)
        state.count += added
        return y

    def _one(self, z: Tensor, mask: Tensor | None, state: BlockRecurrentState) -> Tensor:
        """:meth:`_next` of one position: one query, and the vectors change where it fills a block."""
        local, outer, new = z.split([self.d_model, self.d_model, 2 * self.d_model], dim=2)
        place = state.count % self.block
        state.held.scatter_(1, place[:, None, None].expand_as(new), new)  # padding too, which the next one overwrites
        queries_self, queries_block, of_vectors = self._project_vectors(state.vectors)
        keys = torch.cat([state.before, state.held], dim=1)[:, None]
        window = self._attend_window(local[:, None], keys, place[:, None, None], state.count[:, None] >= self.block)
        y = torch.cat([window[:, 0], self._attend(outer, of_vectors)], dim=2)
        added = torch.ones_like(place) if mask is None else mask.sum(1)
        full = place + added == self.block
        # A device would have to be waited for to know whether any row is at the end of its block.
        if torch.compiler.is_compiling() or full.device.type != "cpu" or full.any():
            found = [self._attend(queries_self, of_vectors), self._attend(queries_block, state.held)]
            change = full[:, None, None]
            changed = self._change(state.vectors, torch.cat(found, dim=2))
            state.vectors.copy_(torch.where(change, changed, state.vectors))
            state.before.copy_(torch.where(change, state.held, state.before))
        state.count += added
        return y

    def _blocks(
        self, z: Tensor, state: BlockRecurrentState | None, full: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Blocks ``(B, C, W, 4 D)`` one after the other.

        Args:
            z: queries to the window, queries to the vectors, keys and values.
            state: what came before.
            full: ``(B,)``, how many of the blocks are full and change the vectors; all if missing.

        Returns:
            ``(B, C, W, 2 D)``; the vectors at the end; keys and values ``(B, 1 + C, W, 2 D)`` from the block before on.
        """
        batch, blocks, _, _ = z.shape
        local, outer, keys = z.split([self.d_model, self.d_model, 2 * self.d_model], dim=3)
        before = torch.zeros_like(keys[:, :1]) if state is None else state.before[:, None]
        keys = torch.cat([before, keys], dim=1)
        vectors = self.vectors.to(z.dtype).expand(batch, -1, -1) if state is None else state.vectors
        seen: list[Tensor] = []  # keys and values of the vectors that each block reads
        for i, own in enumerate(keys.unbind(1)[1:]):  # a slice for each would have a gradient as large as all
            queries_self, queries_block, of_vectors = self._project_vectors(vectors)
            seen.append(of_vectors)
            if i == blocks - 1 and state is None:
                break
            found = [self._attend(queries_self, of_vectors), self._attend(queries_block, own)]
            new = self._change(vectors, torch.cat(found, dim=2))
            vectors = new if full is None else torch.where((i < full)[:, None, None], new, vectors)
        index = torch.arange(blocks, device=z.device)
        number = index[None] if state is None else index + (state.count // self.block)[:, None]
        window = self._window(local, keys, number > 0)
        read = self._attend(outer.flatten(0, 1), torch.stack(seen, dim=1).flatten(0, 1)).view_as(window)
        return torch.cat([window, read], dim=3), vectors, keys

    def _window(self, q: Tensor, keys: Tensor, has_before: Tensor) -> Tensor:
        """Attention ``(B, C, W, D)`` to the W positions up to each."""
        pairs = torch.cat([keys[:, :-1], keys[:, 1:]], dim=2)  # (B, C, 2 W, 2 D)
        return self._attend_window(q, pairs, torch.arange(self.block, device=q.device), has_before)

    def _attend_window(self, q: Tensor, keys: Tensor, place: Tensor, has_before: Tensor) -> Tensor:
        """Attention ``(B, C, n, D)`` of queries at places ``(…, n)`` of a block.

        Args:
            keys: ``(B, C, 2 W, 2 D)``, of the block before and of this one.
            has_before: ``(B, C)``, whether there is a block before.
        """
        size, k_place = self.block, torch.arange(2 * self.block, device=q.device)
        q, k, v = (t.unflatten(3, (self.num_heads, -1)).transpose(2, 3) for t in (q, *keys.chunk(2, dim=3)))
        lag = place[..., None] + size - k_place  # (…, n, 2 W)
        seen = (lag >= 0) & (lag < size) & (has_before[..., None, None] | (k_place >= size))  # (B, C, n, 2 W)
        bias = self.lag_bias.to(q.dtype)[:, lag.clamp(0, size - 1)]  # (M, …, n, 2 W)
        scores = q @ k.transpose(3, 4) * q.size(4) ** -0.5 + (bias if lag.dim() == 2 else bias.movedim(0, 2))
        y = scores.masked_fill(~seen[:, :, None], -torch.inf).softmax(-1) @ v
        return y.transpose(2, 3).flatten(3)

    def _project_vectors(self, vectors: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Of the state vectors: queries to themselves, queries to the block, keys and values."""
        normed = self.norm((vectors + self.places.to(vectors.dtype)).to(self.norm.weight.dtype))
        z = self.state_proj(normed).to(vectors.dtype)
        a, b, keys = z.split([self.d_model, self.d_model, 2 * self.d_model], dim=2)
        return a, b, keys

    def _attend(self, q: Tensor, keys: Tensor) -> Tensor:
        """Attention ``(B, n, D)`` of ``(B, n, D)`` to all of ``(B, m, 2 D)``."""
        k, v = keys.chunk(2, dim=2)
        q, k, v = (t.unflatten(2, (self.num_heads, -1)).transpose(1, 2) for t in (q, k, v))
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)

    def _change(self, vectors: Tensor, found: Tensor) -> Tensor:
        """The gate: what the vectors become, given what they found."""
        new = self.state_out(found.to(self.state_out.weight.dtype)).to(vectors.dtype)
        if self.gate_bias is not None:
            return torch.lerp(new, vectors, torch.sigmoid(self.gate_bias.to(vectors.dtype)))
        z, i, f = new.chunk(3, dim=2)
        return vectors * torch.sigmoid(f + 1) + torch.tanh(z) * torch.sigmoid(i - 1)

    def new_state(self, batch: int, length: int) -> BlockRecurrentState:
        weight, dtype = self.vectors, ops.compute_dtype(self.vectors)
        before, held = (
            torch.zeros(batch, self.block, 2 * self.d_model, dtype=dtype, device=weight.device) for _ in range(2)
        )
        vectors = weight.to(dtype).expand(batch, -1, -1).clone()
        return BlockRecurrentState(
            0, length, before, held, vectors, torch.zeros(batch, dtype=torch.long, device=weight.device)
        )

    def extra_repr(self) -> str:
        return (
            f"d_model={self.d_model}, l_max={self.l_max}, block={self.block}, num_states={self.vectors.size(0)}, "
            f"num_heads={self.num_heads}, gate={self.gate!r}"
        )
