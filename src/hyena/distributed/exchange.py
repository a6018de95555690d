"""All-to-all between shards of positions and shards of channels, differentiable, in flight while others are mixed.

Dimensions: R processes, B batch, L length of the whole row, P parts of a projection, C channels of each, c channels of
one process, n positions of one process.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist

from hyena.distributed.shards import together

Group = dist.ProcessGroup


class Flight:
    """One all-to-all: its buffers from when it is started to when it is waited for.

    Args:
        sent, received: how many numbers go to, and come from, each process.
        group: the processes.
        what: for errors.
    """

    def __init__(self, sent: Sequence[int], received: Sequence[int], group: Group, what: str) -> None:
        self.sent, self.received = list(sent), list(received)
        self._group, self._what = group, what
        self._pending: tuple[Any, Tensor, Tensor] | None = None
        self._back: Flight | None = None

    def start(self, x: Tensor) -> None:
        """Sends ``x``, one-dimensional."""
        out = x.new_empty(sum(self.received))
        with self._together():
            work = dist.all_to_all_single(out, x, self.received, self.sent, group=self._group, async_op=True)
        self._pending = work, x, out  # what is in flight must stay in memory

    def wait(self) -> Tensor:
        """The answer, once it is there."""
        assert self._pending is not None
        work, _, out = self._pending
        self._pending = None
        with self._together():
            work.wait()
        return out

    def leave_back(self) -> Flight:
        """The way of a gradient, a flight of its own: several backward passes may be under way, one of another."""
        self._back = Flight(self.received, self.sent, self._group, self._what)
        return self._back

    def come_back(self) -> Flight:
        """What :meth:`leave_back` gave, once."""
        assert self._back is not None
        back, self._back = self._back, None
        return back

    def _together(self) -> AbstractContextManager[object]:
        return together(f"the all-to-all of {self._what}", self._group)


class _Start(torch.autograd.Function):
    """Sends; the gradient is waited for here, so that it travels while other gradients are computed.

    Gives a number that stands for what is under way, there and back: so each of the two functions is the gradient of
    the other, of every order. The answer itself could not stand there: what is sent may have another size.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, flight: Flight) -> Tensor:
        ctx.flight = flight
        flight.start(x)
        return x.new_zeros(())

    @staticmethod
    def backward(ctx: Any, under_way: Tensor) -> tuple[Tensor, None]:
        return _Wait.apply(under_way, ctx.flight.come_back()), None


class _Wait(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, under_way: Tensor, flight: Flight) -> Tensor:
        ctx.flight = flight
        return flight.wait()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None]:
        return _Start.apply(g.contiguous(), ctx.flight.leave_back()), None


class ToChannels:
    """From ``(B, n, P C)``, all channels of some positions, to ``(B, L, P c)``, some channels of all.

    Starts when it is made; :meth:`wait` gives the result.

    Args:
        z: ``(B, n, P C)``.
        parts: P.
        channels: the channels that go to each process.
        lengths: the positions of each process.
        group: the processes.
        what: for errors.
    """

    def __init__(
        self, z: Tensor, parts: int, channels: Sequence[range], lengths: Sequence[int], group: Group, what: str
    ) -> None:
        rank = dist.get_rank(group)
        batch, here, mine = z.size(0), z.size(1), channels[rank]
        self._shape = (sum(lengths), batch, parts * len(mine))
        sent = [batch * here * parts * len(each) for each in channels]
        received = [batch * length * parts * len(mine) for length in lengths]
        self._flight = Flight(sent, received, group, what)
        by_part = z.unflatten(2, (parts, -1)).transpose(0, 1)  # (n, B, P, C)
        out = torch.cat([by_part[..., each.start : each.stop].reshape(-1) for each in channels])
        self._pending = _Start.apply(out, self._flight)

    def wait(self) -> Tensor:
        """``(B, L, P c)``, in memory ``(B, P c, L)``: as convolutions read it."""
        whole = _Wait.apply(self._pending, self._flight).view(self._shape)
        return whole.permute(1, 2, 0).contiguous().transpose(1, 2)


class ToPositions:
    """From ``(B, L, c)``, some channels of all positions, back to ``(B, n, C)``, all channels of some.

    Args:
        y: ``(B, L, c)``.
        channels, lengths, group, what: as for :class:`ToChannels`.
    """

    def __init__(self, y: Tensor, channels: Sequence[range], lengths: Sequence[int], group: Group, what: str) -> None:
        rank = dist.get_rank(group)
        batch, here = y.size(0), lengths[rank]
        self._shapes = [(here, batch, len(each)) for each in channels]
        received = [here * batch * len(each) for each in channels]
        self._flight = Flight([length * batch * y.size(2) for length in lengths], received, group, what)
        self._pending = _Start.apply(y.transpose(0, 1).reshape(-1), self._flight)

    def wait(self) -> list[Tensor]:
        """What each process sent, ``(B, n, c)`` of its channels."""
        parts = _Wait.apply(self._pending, self._flight).split(self._flight.received)
        return [part.view(shape).transpose(0, 1) for part, shape in zip(parts, self._shapes, strict=True)]
