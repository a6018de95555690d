"""The order of the data: shuffled, the same for any number of processes, and gone on with from two numbers."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Generic, TypeVar

import torch

T = TypeVar("T")


@dataclasses.dataclass
class Place:
    """Where a sampler is: blocks that were taken in an epoch. All that a checkpoint needs of the data."""

    epoch: int = 0
    taken: int = 0


class Sampler(Generic[T]):
    """Takes blocks in an order that a seed decides; in an epoch, each block once.

    The stream is read in windows of ``shuffle`` blocks, and each window is shuffled with random numbers that only the
    seed, the epoch and the window's number decide. Every process takes the same blocks and trains on its share
    (:func:`share`): what a step sees does not depend on how many processes there are, nor on what was interrupted.

    Args:
        source: gives one pass over the blocks, the same at each call.
        shuffle: blocks of a window.
        seed: of the order.
        place: where to go on.

    Raises:
        ValueError: a place beyond the data, or data of not a single block.
    """

    def __init__(self, source: Callable[[], Iterator[T]], shuffle: int, seed: int, place: Place | None = None) -> None:
        self._source, self._shuffle, self._seed = source, shuffle, seed
        self.place = dataclasses.replace(place) if place else Place()
        self._open(self.place.taken // shuffle)
        if self.place.taken > self._start + len(self._window):
            raise ValueError(f"{self.place.taken} blocks were taken of data that now have fewer")

    def take(self, number: int) -> list[T]:
        """The next ``number`` blocks."""
        found: list[T] = []
        while len(found) < number:
            if self.place.taken - self._start == len(self._window):
                self._advance()
            at = self.place.taken - self._start
            some = self._window[at : at + number - len(found)]
            found += some
            self.place.taken += len(some)
        return found

    def _advance(self) -> None:
        """The next window, of the next epoch if this one has no more."""
        self._start += len(self._window)
        self._read()
        if not self._window:
            if self.place.taken == 0:
                raise ValueError("the data have nothing to predict: not even two tokens")
            self.place = Place(self.place.epoch + 1)
            self._open(0)

    def _open(self, window: int) -> None:
        self._start = window * self._shuffle
        self._stream = islice(self._source(), self._start, None)
        self._read()

    def _read(self) -> None:
        window = list(islice(self._stream, self._shuffle))
        random = torch.Generator().manual_seed(_mixed(self._seed, self.place.epoch, self._start // self._shuffle))
        self._window = [window[i] for i in torch.randperm(len(window), generator=random).tolist()]


def share(batch: list[T], rank: int, ranks: int) -> list[T]:
    """The blocks of one of ``ranks`` processes: as many for each, one after the other."""
    each = len(batch) // ranks
    return batch[rank * each : (rank + 1) * each]


def _mixed(*numbers: int) -> int:
    """A seed that a change of any number changes throughout (splitmix64)."""
    mixed, most = 0, (1 << 64) - 1
    for number in numbers:
        mixed = (mixed + number + 0x9E3779B97F4A7C15) & most
        mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & most
        mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & most
        mixed ^= mixed >> 31
    return mixed
