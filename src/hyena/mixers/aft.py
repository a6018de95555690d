"""Attention-free transformers: every channel averages over positions by its own keys, and a gate multiplies the result.

Dimensions: B batch, L length, D channels (d_model), R rank, M heads, W window, T room of a state, n new positions.
"""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from hyena import ops
from hyena.mixers._arguments import check_counts, heads_of
from hyena.mixers._average import ABSENT, Pick, Sums, before, factors, flip, merge, nothing, single, up_to
from hyena.mixers.rows import RowMixer
from hyena.mixers.state import State

# Entries of a table of position weights that are formed at a time; larger ones are formed again for the gradient.
_TABLE = 1 << 20


@dataclasses.dataclass
class AFTState(State):
    """What one :class:`AFT` has read.

    Args:
        keys, values: ``(B, T, D)``.
        count: ``(B,)``, how many of them there are.
    """

    keys: Tensor
    values: Tensor
    count: Tensor


@dataclasses.dataclass
class AFTConvState(State):
    """What one :class:`AFTConv` has summed up.

    Args:
        keys, values: ``(B, W, D)``, of the last positions.
        sums: ``(B, 3, D)``, of all before these: the largest key, and relative to it values and weights.
    """

    keys: Tensor
    values: Tensor
    sums: Tensor


class _AFT(RowMixer):
    """What the two share: three projections, and a gate on an average."""

    def __init__(
        self, d_model: int, l_max: int | None, *, causal: bool, dropout: float, bias: bool, at: dict[str, Any]
    ) -> None:
        super().__init__(d_model, l_max, causal=causal, dropout=dropout, bias=bias)
        self.in_proj = nn.Linear(d_model, 3 * d_model, bias=bias, **at)
        self.out_proj = nn.Linear(d_model, d_model, bias=bias, **at)

    def mix(self, u: Tensor, mask: Tensor | None, cu_seqlens: Tensor | None, longest: int, state: Any) -> Tensor:
        """Mixed values ``(B, L, D)``."""
        z = ops.linear(u, self.in_proj)
        with ops.without_autocast(u.device):
            q, k, v = z.to(ops.compute_dtype(z)).chunk(3, dim=2)
            if mask is not None:
                k = torch.where(mask[..., None], k, ABSENT)
            return torch.sigmoid(q) * self._average(k, v, mask, state)

    @abstractmethod
    def _average(self, k: Tensor, v: Tensor, mask: Tensor | None, state: Any) -> Tensor:
        """Averages ``(B, L, D)``; keys are absent where a position is not kept."""

    def _state_dtype(self) -> dict[str, Any]:
        return {"dtype": ops.compute_dtype(self.in_proj.weight), "device": self.in_proj.weight.device}


class AFT(_AFT):
    """Attention-free transformer with trained pairs of positions (Zhai et al. 2021, arXiv 2105.14103, equation 2).

    ``y_t = sigmoid(q_t) sum_s exp(k_s + w_ts) v_s / sum_s exp(k_s + w_ts)``, channel by channel, with ``w_ts = a_t
    b_s`` of rank R. Memory grows as ``L log L``, time as ``L ** 2``: :class:`AFTConv` is the one for long rows. Keys
    may be of any size: nothing overflows, and no later key touches an earlier output.

    Args:
        d_model: D.
        l_max: longest row; ``w`` is for so many positions.
        rank: R, of ``w``.
        causal: the sums run over ``s <= t``, otherwise over all.
        dropout: of the mixed values before the output projection.
        bias: whether the projections have a bias.

    Raises:
        TypeError: arguments of another type.
        ValueError: numbers out of range.
    """

    compacts = True
    state_class = AFTState
    no_decay = ("query_factors", "key_factors")

    def __init__(
        self,
        d_model: int,
        l_max: int,
        *,
        rank: int = 128,
        causal: bool = True,
        dropout: float = 0.0,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        at: dict[str, Any] = {"device": device, "dtype": dtype}
        check_counts(l_max=l_max, rank=rank)
        super().__init__(d_model, l_max, causal=causal, dropout=dropout, bias=bias, at=at)
        self.query_factors = nn.Parameter(torch.empty(l_max, rank, **at))
        self.key_factors = nn.Parameter(torch.empty(l_max, rank, **at))
        self._start()

    @property
    def rank(self) -> int:
        """R."""
        return self.query_factors.size(1)

    def reset_parameters(self) -> None:
        """Initialises every parameter again."""
        super().reset_parameters()
        self._start()

    def _start(self) -> None:
        for t in (self.query_factors, self.key_factors):
            nn.init.normal_(t, std=0.1 * self.rank**-0.25)  # products of about 0.01, as in the paper

    def _average(self, k: Tensor, v: Tensor, mask: Tensor | None, state: AFTState | None) -> Tensor:
        n = k.size(1)
        if state is None:
            place = torch.arange(n, device=k.device)[None]
        else:  # places beyond the last are the padding's
            place = (state.count[:, None] + torch.arange(n, device=k.device)).clamp_max(self.query_factors.size(0) - 1)
        a, b = (t.to(k.dtype)[place] for t in (self.query_factors, self.key_factors))  # (1 or B, L, R)
        sums = before(k, v, single(k + (a * b).sum(-1, keepdim=True), v), self._weigh(a, b))
        if not self.causal:
            k, v, a, b = (t.flip(1) for t in (k, v, a, b))
            sums = merge(sums, flip(before(k, v, nothing(k), self._weigh(a, b))))
        if state is not None:
            sums = merge(sums, self._past(a, state))
            self._append(k, v, mask, state)
        return sums.average()

    def _weigh(self, a: Tensor, b: Tensor) -> Any:
        def weigh(both: Tensor, left: Pick, right: Pick) -> tuple[Tensor, Tensor]:
            return _weighted(right(a), left(b), both)

        return weigh

    def _past(self, a: Tensor, state: AFTState) -> Sums:
        """Sums over the positions of a state, for new queries ``(B, n, R)``."""
        there = torch.arange(state.keys.size(1), device=a.device) < state.count[:, None]
        top, both = factors(torch.where(there[..., None], state.keys, ABSENT), state.values, dim=1)
        both = torch.where(there[..., None], both, 0.0)
        b = self.key_factors[: state.keys.size(1)].to(a.dtype)[None, None]
        found, lacks = _weighted(a[:, None], b, both[:, None])
        values, weights = found[:, 0].chunk(2, dim=-1)
        return Sums(top + lacks[:, 0], values, weights)

    def _append(self, k: Tensor, v: Tensor, mask: Tensor | None, state: AFTState) -> None:
        n = k.size(1)
        new = torch.full_like(state.count, n) if mask is None else mask.sum(1)
        # Padding, which comes last, is written too; it is not counted, and what comes next overwrites it.
        place = (state.count[:, None] + torch.arange(n, device=k.device))[..., None].expand_as(k)
        state.keys.scatter_(1, place, k)
        state.values.scatter_(1, place, v)
        state.count += new

    def new_state(self, batch: int, length: int) -> AFTState:
        at = self._state_dtype()
        keys, values = (torch.zeros(batch, length, self.d_model, **at) for _ in range(2))
        return AFTState(0, length, keys, values, torch.zeros(batch, dtype=torch.long, device=at["device"]))

    def extra_repr(self) -> str:
        return f"d_model={self.d_model}, l_max={self.l_max}, rank={self.rank}, causal={self.causal}"


class AFTConv(_AFT):
    """Attention-free transformer with weights of lags (Zhai et al. 2021, arXiv 2105.14103, section 2.2).

    ``y_t = sigmoid(q_t) sum_s exp(k_s + w_{t-s}) v_s / sum_s exp(k_s + w_{t-s})``, where ``w`` is trained for lags
    below W in each head and zero beyond, so that every output still averages over the whole row. It costs ``L (W + log
    W)``, and a step the same anywhere. Keys may be of any size.

    Args:
        d_model: D.
        l_max: longest row; None for any length, and then states need a ``max_length``.
        window: W.
        num_heads: M, a divisor of D, which have one ``w`` each. If missing, heads have 64 channels, or there is one
            where 64 does not divide D.
        causal: the sums run over ``s <= t``, otherwise over all, with lags below W in both directions.
        dropout: of the mixed values before the output projection.
        bias: whether the projections have a bias.

    Raises:
        TypeError: arguments of another type.
        ValueError: numbers out of range, or that do not fit together.
    """

    state_class = AFTConvState
    no_decay = ("weight",)

    def __init__(
        self,
        d_model: int,
        l_max: int | None = None,
        *,
        window: int = 32,
        num_heads: int | None = None,
        causal: bool = True,
        dropout: float = 0.0,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        at: dict[str, Any] = {"device": device, "dtype": dtype}
        check_counts(window=window)
        super().__init__(d_model, l_max, causal=causal, dropout=dropout, bias=bias, at=at)
        self.num_heads = heads_of(d_model, num_heads)
        # Lags 0 … W-1; two-sided a second row for those to the right, whose lag 0 is not used.
        self.weight = nn.Parameter(torch.empty(1 if causal else 2, self.num_heads, window, **at))
        nn.init.normal_(self.weight, std=0.01)

    @property
    def window(self) -> int:
        """W."""
        return self.weight.size(2)

    def reset_parameters(self) -> None:
        """Initialises every parameter again."""
        super().reset_parameters()
        nn.init.normal_(self.weight, std=0.01)

    def _average(self, k: Tensor, v: Tensor, mask: Tensor | None, state: AFTConvState | None) -> Tensor:
        w = self.weight.to(k.dtype)
        own = single(k + w[0, :, 0].repeat_interleave(self.d_model // self.num_heads), v)
        sums = self._before(w[0], k, v, own)
        if not self.causal:
            sums = merge(sums, flip(self._before(w[1], k.flip(1), v.flip(1), nothing(k))))
        if state is not None:
            sums = merge(sums, self._past(w[0], k.size(1), state))
            self._append(k, v, state)
        return sums.average()

    def _before(self, w: Tensor, k: Tensor, v: Tensor, own: Sums) -> Sums:
        """Sums over all positions before each one, and its ``own``, by blocks that the window does not reach beyond.

        A tree within each block, the window's weights from the block before it, and plain sums of all before that.
        """
        batch, length = k.shape[:2]
        size = max(1, min(1 << (self.window - 1).bit_length(), length))
        n = -(-length // size)

        def blocks(t: Tensor) -> Tensor:  # with zeros at the end, which come before nothing
            return F.pad(t, (0, 0, 0, n * size - length)).reshape(batch * n, size, t.size(2))

        def apart(t: Tensor) -> Tensor:
            return t.unflatten(0, (batch, n))

        def weigh(both: Tensor, left: Pick, right: Pick) -> tuple[Tensor, Tensor]:
            return self._rows_after(w, both, right(k).size(2))

        k, v = blocks(k), blocks(v)
        sums = Sums(*map(apart, before(k, v, Sums(*map(blocks, own)), weigh)))
        if n > 1:
            top, both = factors(apart(k)[:, :-1], apart(v)[:, :-1], dim=2)  # of all blocks but the last
            found, lacks = self._rows_after(w, both, size)
            near = Sums(top + lacks, *found.chunk(2, dim=-1))
            far = up_to(Sums(top, *both.sum(2, keepdim=True).chunk(2, dim=-1)))
            none = nothing(top[:, :1])
            far = Sums(*(torch.cat([a, b[:, :-1]], dim=1) for a, b in zip(none, far, strict=True)))
            after = merge(Sums(*(t[:, 1:] for t in sums)), merge(near, far))
            sums = Sums(*(torch.cat([a[:, :1], b], dim=1) for a, b in zip(sums, after, strict=True)))
        return Sums(*(t.flatten(1, 2)[:, :length] for t in sums))

    def _rows_after(self, w: Tensor, both: Tensor, rows: int) -> tuple[Tensor, Tensor]:
        """Sums over ``(B, n, h, 2 D)`` for each of the ``rows`` that follow, and the factor that they lack."""
        near, first = min(both.size(2), self.window), min(rows, self.window)
        top = w.detach().amax(1).clamp_min(0.0)  # (M,)
        lag = torch.arange(first, device=w.device)[:, None] + near - torch.arange(near, device=w.device)
        table = torch.exp(F.pad(w, (0, 1))[:, lag.clamp_max(self.window)] - top[:, None, None])  # (M, first, near)
        heads = both.unflatten(3, (2, self.num_heads, -1))
        far = heads[:, :, : both.size(2) - near].sum(2, keepdim=True)
        plain = torch.exp(-top)[:, None]
        found = torch.einsum("mij,bnjcme->bnicme", table, heads[:, :, both.size(2) - near :]) + plain * far
        if rows > first:
            rest = plain * heads.sum(2, keepdim=True)
            found = torch.cat([found, rest.expand(-1, -1, rows - first, -1, -1, -1)], dim=2)
        return found.flatten(3), top.repeat_interleave(self.d_model // self.num_heads)

    def _past(self, w: Tensor, rows: int, state: AFTConvState) -> Sums:
        """Sums over the positions of a state, for the ``rows`` that follow it."""
        top, both = factors(state.keys, state.values, dim=1)
        found, lacks = self._rows_after(w, both[:, None], rows)
        values, weights = found[:, 0].chunk(2, dim=-1)
        return merge(Sums(top + lacks, values, weights), Sums(*state.sums.split(1, dim=1)))

    def _append(self, k: Tensor, v: Tensor, state: AFTConvState) -> None:
        keys, values = torch.cat([state.keys, k], dim=1), torch.cat([state.values, v], dim=1)
        n = k.size(1)
        top, both = factors(keys[:, :n], values[:, :n], dim=1)
        left = Sums(top, *both.sum(1, keepdim=True).chunk(2, dim=-1))
        state.sums.copy_(torch.cat(merge(left, Sums(*state.sums.split(1, dim=1))), dim=1))
        state.keys.copy_(keys[:, n:])
        state.values.copy_(values[:, n:])

    def new_state(self, batch: int, length: int) -> AFTConvState:
        at = self._state_dtype()
        keys = torch.full((batch, self.window, self.d_model), ABSENT, **at)
        sums = torch.cat(nothing(torch.zeros(batch, 1, self.d_model, **at)), dim=1)
        return AFTConvState(0, length, keys, torch.zeros_like(keys), sums)

    def extra_repr(self) -> str:
        return f"d_model={self.d_model}, l_max={self.l_max}, window={self.window}, causal={self.causal}"


def _weighted(a: Tensor, b: Tensor, both: Tensor) -> tuple[Tensor, Tensor]:
    """``sum_j exp(a_i b_j) both_j`` up to a factor, whose logarithm is returned: ``(B, n, r, 2 D)``, ``(…, r, 1)``."""

    def rows(a: Tensor, b: Tensor, both: Tensor) -> tuple[Tensor, Tensor]:
        w = a @ b.transpose(-1, -2)
        top = w.detach().amax(-1, keepdim=True)
        return torch.exp(w - top) @ both, top

    step = max(1, _TABLE // (a.size(0) * a.size(1) * b.size(2)))
    if step >= a.size(2):
        return rows(a, b, both)
    parts = [checkpoint(rows, part, b, both, use_reentrant=False) for part in a.split(step, dim=2)]
    found, tops = zip(*parts, strict=True)
    return torch.cat(found, dim=2), torch.cat(tops, dim=2)
