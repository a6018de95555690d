"""Which inputs are convolved into which later outputs, and when, so that no step of a decode costs much.

Positions are cut into blocks of ``N`` positions for ``N = b, 2 b, 4 b, …``. A *square* is what one block gives to
another one, 1, 2 or 3 blocks later. Up to ``M = AT_ONCE * b`` they are the tiles of Flash Inference (arXiv 2410.12982,
algorithm 2): after ``t`` inputs, with ``U`` the largest ``N <= M`` that divides ``t``, the last ``U`` inputs go into
the next ``U`` outputs, and that cannot wait. Beyond, Gardner's idea (1995, "Efficient convolution without input-output
delay") leaves time: with ``i`` the last block of ``N >= M`` inputs that is complete, the square ``(i, i + 2)``, and for
even ``i`` also ``(i, i + 3)``, are needed ``N`` positions later at the earliest. They are computed in the meantime,
some channels after a base block now and then. All other pairs of blocks are squares of the next larger ``N``, so every
pair of an input and a later output is met exactly once. Squares cost up to three times what tiles of the same inputs
would, which are a small part of a decode's time.

Where a state stands is its position alone: what has been added to later outputs follows from it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

# Tiles of up to this many base blocks are computed at once.
AT_ONCE = 8


class Square(NamedTuple):
    """What a block of inputs gives to a block of outputs.

    Attributes:
        start: the first input.
        size: N, inputs and outputs.
        away: how many blocks later the outputs are: 1, 2 or 3.
    """

    start: int
    size: int
    away: int

    @property
    def output(self) -> int:
        """The first output."""
        return self.start + self.away * self.size


class Share(NamedTuple):
    """What is computed of a square while a part of the time that there is for it passes.

    Attributes:
        square: whose.
        start, stop: positions since it could be begun.
        room: positions until it is needed.
    """

    square: Square
    start: int
    stop: int
    room: int

    def of(self, parts: int) -> range:
        """Which of so many equal parts; those of other sizes at other moments, so that no step has to do several."""
        size = self.square.size.bit_length()
        moment = int(self.room * ((2 * size + self.square.away) * 0.618034 % 1.0))
        return range((parts * self.start + moment) // self.room, (parts * self.stop + moment) // self.room)


def kinds(max_length: int, block: int) -> list[tuple[int, int]]:
    """``(size, away)`` of all squares that rows of up to ``max_length`` positions meet."""
    found, size = [], block
    while size < max_length:
        if size <= AT_ONCE * block:
            found.append((size, 1))
        if size >= AT_ONCE * block:
            found += [(size, away) for away in (2, 3) if away * size < max_length]
        size *= 2
    return found


def tile(t: int, block: int) -> Square:
    """What is computed at once after ``t`` inputs, a multiple of ``block``."""
    blocks = t // block
    size = block * min(blocks & -blocks, AT_ONCE)
    return Square(t - size, size, 1)


def between(start: int, stop: int, max_length: int, block: int) -> Iterator[Share]:
    """What is computed while the inputs from ``start`` to ``stop`` come, of squares with outputs from ``stop`` on.

    Args:
        start, stop: multiples of ``block``, either neighbours or a piece that :func:`inside` was computed for.
        max_length: outputs from there on are of no interest.
        block: ``b``.
    """
    size = AT_ONCE * block
    while 2 * size < max_length:
        # Only the last three blocks that begin before ``stop`` reach outputs beyond it.
        first = max(start // size, stop // size - 3, 1) * size
        for done in range(first, stop, size):
            low, high = max(start, done) - done, min(stop - done, size)
            for square in _squares(done, size):
                if stop <= square.output < max_length:
                    yield Share(square, low, high, size)
        size *= 2


def inside(start: int, stop: int, block: int) -> Iterator[Square]:
    """What has not been computed yet at ``start`` of what earlier inputs give to outputs before ``stop``.

    Args:
        start, stop: a piece whose length is a power of two of blocks and divides ``start``.
        block: ``b``.
    """
    size = AT_ONCE * block
    while 2 * size <= stop - start and size <= start:
        yield from (square for square in _squares(start, size) if square.output < stop)
        size *= 2


def _squares(done: int, size: int) -> Iterator[Square]:
    """The squares of the block of inputs that is complete at ``done``."""
    start = done - size
    yield Square(start, size, 2)
    if start % (2 * size) == 0:
        yield Square(start, size, 3)
