"""Averages with exponential weights of any size, over all positions before each: exactly causal, nothing overflows.

``sum_s exp(k_s + w_ts) v_s / sum_s exp(k_s + w_ts)`` for each channel, where one channel's ``k`` may differ by hundreds
between positions. A common factor would let a loud future round the past to zero, so sums are formed as in a tree: at
each level the right half of a block takes what its left half sums up to, relative to the left half's own largest key.

Dimensions: B batch, L length, C channels, n blocks of a level, h positions of half a block, r rows of a right half.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

# The key of a position that is not there. Differences of such keys stay finite, in float32 too.
ABSENT = -1e30

Pick = Callable[[Tensor], Tensor]


class Sums(NamedTuple):
    """``exp(top) * values`` and ``exp(top) * weights``: weighted values, and the weights. ``top`` has no gradient."""

    top: Tensor
    values: Tensor
    weights: Tensor

    def average(self) -> Tensor:
        """Values over weights; zero where nothing was summed."""
        return self.values / self.weights.clamp_min(torch.finfo(self.weights.dtype).tiny)


def merge(a: Sums, b: Sums) -> Sums:
    """The sums of both."""
    top = torch.maximum(a.top, b.top)
    of_a, of_b = torch.exp(a.top - top), torch.exp(b.top - top)
    return Sums(top, a.values * of_a + b.values * of_b, a.weights * of_a + b.weights * of_b)


def up_to(sums: Sums) -> Sums:
    """Sums of each entry along the second dimension and all before it."""
    shift = 1
    while shift < sums.top.size(1):
        later = merge(Sums(*(t[:, shift:] for t in sums)), Sums(*(t[:, :-shift] for t in sums)))
        sums = Sums(*(torch.cat([a[:, :shift], b], dim=1) for a, b in zip(sums, later, strict=True)))
        shift *= 2
    return sums


def single(k: Tensor, v: Tensor) -> Sums:
    """The sums of one value each."""
    top = k.detach()
    weights = torch.exp(k - top)
    return Sums(top, weights * v, weights)


def factors(k: Tensor, v: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """The largest key along ``dim``, and ``[e v, e]`` with ``e = exp(k - largest)``, ``(…, 2 C)``."""
    top = k.detach().amax(dim, keepdim=True)
    e = torch.exp(k - top)
    return top, torch.cat([e * v, e], dim=-1)


def before(k: Tensor, v: Tensor, own: Sums, weigh: Callable[[Tensor, Pick, Pick], tuple[Tensor, Tensor]]) -> Sums:
    """Sums over all positions before each one, and its ``own``.

    Args:
        k, v: ``(B, L, C)``.
        own: what a position counts for itself.
        weigh: called with ``[e v, e]`` of left halves ``(B, n, h, 2 C)`` and two functions, that take the left
            ``(B, n, h, …)`` and the right halves ``(B, n, r, …)`` out of a ``(B, L, …)`` tensor. Returns ``(B, n, r,
            2 C)``, the sums over each left half, and the logarithm of a factor that they lack, without a gradient.

    Returns:
        Sums ``(B, L, C)``.
    """
    length, half = k.size(1), 1
    sums = own
    while half < length:
        pairs, rest = length // (2 * half), length % (2 * half)  # torch.compile has no divmod of lengths that vary
        parts: list[Sums] = []
        for n, start, rows in ((pairs, 0, half), (1, pairs * 2 * half, rest - half)):
            if n == 0 or rows <= 0:
                continue
            halves = _Halves(n, start, half, rows)
            top, both = factors(halves.left(k), halves.left(v), dim=2)
            found, lacks = weigh(both, halves.left, halves.right)
            values, weights = found.chunk(2, dim=-1)
            lefts, rights = zip(*map(halves.both, sums), strict=True)
            new = merge(Sums(*rights), Sums(top + lacks, values, weights))
            parts.append(Sums(*(torch.cat(t, dim=2).flatten(1, 2) for t in zip(lefts, new, strict=True))))
        if 0 < rest <= half:
            parts.append(Sums(*(t[:, length - rest :] for t in sums)))
        sums = parts[0] if len(parts) == 1 else Sums(*(torch.cat(t, dim=1) for t in zip(*parts, strict=True)))
        half *= 2
    return sums


class _Halves(NamedTuple):
    """Takes left ``(B, n, h, …)`` and right halves ``(B, n, r, …)`` of n blocks out of a ``(B, L, …)`` tensor."""

    n: int
    start: int
    half: int
    rows: int

    def both(self, t: Tensor) -> tuple[Tensor, ...]:
        # Both from one split, whose gradient is one tensor: that of two slices is a sum of two, of mostly zeros.
        size = self.half + self.rows
        if t.size(1) != self.n * size:
            t = t[:, self.start : self.start + self.n * size]
        return t.unflatten(1, (self.n, size)).split([self.half, self.rows], dim=2)

    def left(self, t: Tensor) -> Tensor:
        return self.both(t)[0]

    def right(self, t: Tensor) -> Tensor:
        return self.both(t)[1]


def flip(sums: Sums) -> Sums:
    """In the other direction of time."""
    return Sums(*(t.flip(1) for t in sums))


def nothing(like: Tensor) -> Sums:
    """Sums of nothing, of the shape of ``like``."""
    return Sums(torch.full_like(like, ABSENT), torch.zeros_like(like), torch.zeros_like(like))
