"""Progress of the stages: a bar with tqdm where that is installed, lines where it is not."""

from __future__ import annotations

import importlib
import sys
from typing import Any

_LINES = 10  # of a stage, without tqdm


class Progress:
    """The steps of one stage.

    Args:
        name: of the stage.
        total: its steps.
        done: those that an earlier run has taken.
        shown: whether to show anything.
    """

    def __init__(self, name: str, total: int, done: int, shown: bool) -> None:
        self.name, self.total, self.done, self.shown = name, total, done, shown
        self._bar: Any = None
        if shown:
            try:
                tqdm = importlib.import_module("tqdm").tqdm
            except ImportError:
                return
            self._bar = tqdm(total=total, initial=done, desc=name, unit="step", mininterval=0.5)

    def step(self, text: str) -> None:
        """One step more, with what came of it."""
        self.done += 1
        if self._bar is not None:
            self._bar.set_postfix_str(text, refresh=False)
            self._bar.update()
        elif self.shown and (self.done == self.total or self.done % max(1, self.total // _LINES) == 0):
            print(f"{self.name}: step {self.done} of {self.total}, {text}", file=sys.stderr, flush=True)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *error: object) -> None:
        if self._bar is not None:
            self._bar.close()
