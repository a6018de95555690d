"""A progress bar of one line on standard error."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import TextIO

_WIDTH = 24
_EVERY = 0.1  # seconds between two drawings


class Progress:
    """What has been done of a known amount: a bar, the rate and the time left.

    It draws on a terminal only; anywhere else it writes nothing.

    Args:
        total: how much there is to do, None if that is not known.
        unit: of ``total``.
        shown: whether to draw at all.
        stream: where to, standard error if missing.
        done: what an earlier run has done already.
    """

    def __init__(
        self, total: int | None, unit: str, *, shown: bool = True, stream: TextIO | None = None, done: int = 0
    ) -> None:
        self.total, self.unit, self.done, self.before = total, unit, done, done
        self.stream = sys.stderr if stream is None else stream
        self.shown = shown and self.stream.isatty()
        self.start, self.drawn = time.monotonic(), 0.0

    def __enter__(self) -> Progress:
        self._draw()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.shown:
            self._draw()
            self.stream.write("\n")
            self.stream.flush()

    def add(self, amount: int) -> None:
        """Says that more has been done."""
        self.done += amount
        if self.shown and time.monotonic() - self.drawn >= _EVERY:
            self._draw()

    def text(self) -> str:
        """The line as it is now."""
        rate = (self.done - self.before) / max(time.monotonic() - self.start, 1e-9)
        speed = f"{_short(rate)} {self.unit}/s"
        if self.total is None:
            return f"{_short(self.done)} {self.unit}, {speed}"
        share = min(self.done / max(self.total, 1), 1.0)
        bar = ("#" * int(share * _WIDTH)).ljust(_WIDTH, ".")
        left = _clock((self.total - self.done) / rate) if rate > 0 else "?"
        return f"[{bar}] {share:4.0%} of {_short(self.total)} {self.unit}, {speed}, {left} left"

    def _draw(self) -> None:
        if self.shown:
            self.stream.write("\r\x1b[2K" + self.text())
            self.stream.flush()
            self.drawn = time.monotonic()


def _short(number: float) -> str:
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g}{letter}"
    return f"{number:.3g}"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(max(seconds, 0.0)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
