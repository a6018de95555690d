"""Batches as they come from the caller: counted, moved to the model's device, skipped after a resume.

Dimensions: B batch, L length.
"""

from __future__ import annotations

import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor


class Batches:
    """An iterator over the caller's batches that says by number what is wrong with them.

    Args:
        source: the caller's iterable; one pass is made over it.
        needed: how many batches will be asked for, and what for, in words, for errors.
        device: where tensors go.
        longest: the longest row that any layer takes, None if there is no limit.

    Attributes:
        taken: batches that came so far.
        mark: a checksum of the last of them, by which a resumed run knows that it sees the same ones.
    """

    def __init__(
        self, source: Iterable[Any], needed: int, words: str, device: torch.device, longest: int | None
    ) -> None:
        check_source(source)
        try:
            self._iterator: Iterator[Any] = iter(source)
        except TypeError:
            raise TypeError(f"batches is a {type(source).__name__}, which cannot be iterated over") from None
        self._needed, self._words, self._device, self._longest = needed, words, device, longest
        self.taken, self.mark = 0, 0
        self._ahead: deque[Any] = deque()
        known = length_of(source)
        if known == 0:
            raise ValueError(self._short(0))
        if known is not None and known < needed:
            raise ValueError(self._short(known))

    def _short(self, count: int) -> str:
        if count == 0:
            return f"batches is empty: {self._needed} are needed ({self._words})"
        return f"batches gave {count} and {self._needed} are needed ({self._words}): pass more, or ask for fewer steps"

    def next(self) -> Any:
        """The next batch, on the device.

        Raises:
            ValueError: there is none, or its rows are too long.
        """
        batch = self._ahead.popleft() if self._ahead else self._read()
        self.taken += 1
        self.mark = checksum(batch)
        return batch

    def peek(self, count: int) -> list[Any]:
        """The next ``count`` batches, or as many as there are, which still come."""
        while len(self._ahead) < min(count, self._needed - self.taken):
            self._ahead.append(self._read())
        return list(self._ahead)[:count]

    def _read(self) -> Any:
        number = self.taken + len(self._ahead)
        try:
            batch = next(self._iterator)
        except StopIteration:
            raise ValueError(self._short(number)) from None
        self._check_length(batch, number)
        return moved(batch, self._device)

    def take(self, count: int) -> list[Any]:
        """The next ``count`` batches."""
        return [self.next() for _ in range(count)]

    def skip_to(self, taken: int, mark: int) -> None:
        """Passes over what an earlier run has taken.

        Raises:
            ValueError: the last of them is another batch than the earlier run saw.
        """
        while self.taken < taken:
            self.next()
        if taken > 0 and self.mark != mark:
            raise ValueError(
                f"batch {taken - 1} is not the one that the run in the checkpoint saw there: pass batches that come "
                "in the same order every time (a fixed seed), or another checkpoint folder"
            )

    def _check_length(self, batch: Any, number: int) -> None:
        if self._longest is None:
            return
        for t in tensors(batch):
            if t.dim() == 2 and not t.is_floating_point() and t.size(1) > self._longest:
                raise ValueError(
                    f"batch {number} has rows of {t.size(1)} positions, and the longest row of the new layers "
                    f"is l_max={self._longest}: pass l_max={t.size(1)}, or shorter rows"
                )


def check_source(source: Any) -> None:
    """Raises ``TypeError`` for one batch in the place of several."""
    if isinstance(source, (Tensor, Mapping, str, bytes)):
        raise TypeError(f"batches is a {type(source).__name__}, one batch at most: pass an iterable of batches")


def length_of(source: Any) -> int | None:
    """``len(source)``, or None where that is not known."""
    try:
        return len(source)
    except TypeError:
        return None


def mapped(batch: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """The batch with ``change`` of each of its tensors."""
    if isinstance(batch, Tensor):
        return change(batch)
    if isinstance(batch, Mapping):
        return {name: mapped(part, change) for name, part in batch.items()}
    if isinstance(batch, (tuple, list)):
        return [mapped(part, change) for part in batch]
    return batch


def moved(batch: Any, device: torch.device) -> Any:
    """The batch with its tensors on a device."""
    return mapped(batch, lambda t: t.to(device))


def tensors(batch: Any) -> list[Tensor]:
    """All tensors of a batch, in its order."""
    found: list[Tensor] = []

    def collect(t: Tensor) -> Tensor:
        found.append(t)
        return t

    mapped(batch, collect)
    return found


def checksum(batch: Any) -> int:
    """A number that other values, shapes or dtypes of the batch's tensors would change."""
    total = 0
    for t in tensors(batch):
        total = zlib.crc32(f"{t.dtype}{tuple(t.shape)}".encode(), total)
        plain = t.detach().cpu().contiguous().reshape(-1)
        total = zlib.crc32(plain.view(torch.uint8).numpy().tobytes(), total) if plain.numel() else total
    return total
