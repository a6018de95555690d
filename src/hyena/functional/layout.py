"""Grids laid out as one row, so that a long convolution over several axes is one along a sequence.

Rows of ``n`` positions that lie ``S >= n + reach`` positions apart, with zeros between, do not see each other's ends:
lag ``(a, b)`` of the grid is lag ``a S + b`` of the row, and no two lags of the grid are the same one. A filter of
``(2n-1) (2m-1)`` taps is then one of as many taps, and the row, of ``n (2m-1)`` positions, needs a transform of that
many points (:mod:`hyena.ops`), where a transform of twice the grid in both directions has ``4 n m`` real ones: the same
work, in the kernels of one axis.

Dimensions: B batch, n positions of an axis, C channels, G filter channels, K taps.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

BOUNDARIES = ("zero", "circular", "reflect")


class Axis(NamedTuple):
    """One axis of a grid, and the lags of a filter along it.

    Attributes:
        size: n.
        first, last: lags of the taps that are used.
        before, after: positions that the boundary adds on either side, copies of others.
        period: None, or a boundary that copies nothing before the axis: taps are folded to one period, and repeated.
        boundary: what they are copies of.
    """

    size: int
    first: int
    last: int
    before: int = 0
    after: int = 0
    period: int | None = None
    boundary: str = "zero"

    @property
    def extended(self) -> int:
        """Positions with those that the boundary adds."""
        return self.before + self.size + self.after

    @property
    def room(self) -> int:
        """Positions from one copy of the axis to the next, so that no tap reaches from one into outputs of another."""
        return max(self.extended, self.extended + self.last - self.before, self.before + self.size - self.first)

    def taps(self, h: Tensor, dim: int, first: int) -> Tensor:
        """Taps of lags ``first …`` along ``dim`` (counted from the end), as taps of lags ``self.first … self.last``."""
        if self.period is None:
            return _part(h, dim, self.first - first, self.last - self.first + 1)
        front = first % self.period
        h = _padded(h, dim, front, -(front + h.size(dim)) % self.period)
        h = h.unflatten(dim, (-1, self.period)).sum(dim - 1)  # taps of lags 0 … period - 1
        return torch.cat([_part(h, dim, 1, self.period - 1), _part(h, dim, 0, self.size)], dim)


def axis_of(size: int, first: int, last: int, boundary: str) -> Axis:
    """An axis of ``size`` positions for a filter of lags ``first … last``."""
    if boundary == "zero":
        return Axis(size, max(first, 1 - size), min(last, size - 1))
    if last - first < size // 2:  # copying the ends costs less than lags of a whole period
        return Axis(size, first, last, max(last, 0), max(-first, 0), None, boundary)
    # Of a circle, every lag modulo its length, as one that leads from a position of the row to another. A mirrored axis
    # is a circle with its inner positions once more in reverse.
    period = max(2 * size - 2, 1) if boundary == "reflect" else size
    return Axis(size, 1 - period, size - 1, 0, period - size, period, boundary)


def extended(x: Tensor, dim: int, before: int, after: int, boundary: str) -> Tensor:
    """``x`` with copies of its own positions before and after those along ``dim``, as a circle or mirrored.

    As many as asked for: round the circle again, or to and fro.
    """
    if before == 0 and after == 0:
        return x
    size = x.size(dim)
    at = torch.arange(-before, size + after, device=x.device)
    if boundary == "circular":
        return x.index_select(dim, at % size)
    period = max(2 * size - 2, 1)
    at = at % period
    return x.index_select(dim, torch.where(at < size, at, period - at))


class Layout(NamedTuple):
    """A grid and a filter over it as one row; see the module's first lines.

    Attributes:
        axes: the outermost first.
        firsts: first lag of the filter's taps along each axis, as they come.
    """

    axes: tuple[Axis, ...]
    firsts: tuple[int, ...]

    @classmethod
    def of(
        cls, space: Sequence[int], counts: Sequence[int], causal: Sequence[bool], boundaries: Sequence[str]
    ) -> Layout:
        """The layout of a grid for filters of so many taps along each axis, causal ones or two-sided."""
        firsts = tuple(0 if one else -(count // 2) for count, one in zip(counts, causal, strict=True))
        lags = zip(space, firsts, counts, boundaries, strict=True)
        return cls(tuple(axis_of(n, first, first + count - 1, boundary) for n, first, count, boundary in lags), firsts)

    @property
    def shape(self) -> tuple[int, ...]:
        """The grid as it lies in the row: every axis but the outermost takes its room."""
        outer, *inner = self.axes
        return (outer.extended, *(axis.room for axis in inner))

    @property
    def length(self) -> int:
        """Positions of the row."""
        return math.prod(self.shape)

    @property
    def steps(self) -> tuple[int, ...]:
        """Positions of the row from a position of the grid to the next along each axis."""
        return tuple(accumulate(self.shape[:0:-1], lambda step, room: step * room, initial=1))[::-1]

    def row(self, x: Tensor) -> Tensor:
        """``(B, *space, C) -> (B, length, C)``."""
        for dim, axis in enumerate(self.axes, 1):
            x = extended(x, dim, axis.before, axis.after, axis.boundary)
        # Zeros without memory of their own: joining them takes one pass, where F.pad fills everything first.
        for dim, axis in enumerate(self.axes[1:], 2):
            shape = [*x.shape[:dim], axis.room - axis.extended, *x.shape[dim + 1 :]]
            if shape[dim] > 0:
                x = torch.cat([x, x.new_zeros(()).expand(shape)], dim)
        return x.flatten(1, -2)

    def grid(self, y: Tensor) -> Tensor:
        """``(B, length, C) -> (B, *space, C)``, a view."""
        y = y.unflatten(1, self.shape)
        for dim, axis in enumerate(self.axes, 1):
            y = _part(y, dim, axis.before, axis.size)
        return y

    def taps(self, h: Tensor) -> tuple[Tensor, bool]:
        """Taps of the grid, ``(…, *K, G)``, as taps of the row, and whether these are causal.

        Returns:
            ``(…, K, G)`` of lags ``0 … K-1``, or ``(…, 2K-1, G)`` of lags ``-(K-1) … K-1``.
        """
        count = len(self.axes)
        for i, (axis, first) in enumerate(zip(self.axes, self.firsts, strict=True)):
            h = axis.taps(h, i - count - 1, first)
        pads = [0, 0]
        for axis in self.axes[:0:-1]:
            pads += [0, axis.room - (axis.last - axis.first + 1)]
        h = (F.pad(h, pads) if any(pads) else h).flatten(-count - 1, -2)
        first = sum(axis.first * step for axis, step in zip(self.axes, self.steps, strict=True))
        last = sum(axis.last * step for axis, step in zip(self.axes, self.steps, strict=True))
        h = _part(h, -2, 0, last - first + 1)
        if first >= 0:
            return _padded(h, -2, first, 0), True
        reach = max(-first, last)
        return _padded(h, -2, reach + first, reach - last), False


def _part(h: Tensor, dim: int, start: int, size: int) -> Tensor:
    """``h.narrow``, but all of ``h`` is itself: the gradient of a part is written into zeros first."""
    return h if size == h.size(dim) else h.narrow(dim, start, size)


def _padded(h: Tensor, dim: int, front: int, back: int) -> Tensor:
    """``h`` with zeros before and after along ``dim``, counted from the end."""
    if front == 0 and back == 0:
        return h
    return F.pad(h, [0, 0] * (-dim - 1) + [front, back])
