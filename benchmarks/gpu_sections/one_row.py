"""A batch of one row: a prompt, or one long document, where launches and latency count rather than rates."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

from measure import variants

from gpu_sections.bench import HALF, Bench, Job, K, call, row


def one_row(b: Bench) -> Iterator[Job]:
    """Milliseconds of one row, beside the bandwidth bound."""
    for length in b.lengths(*(K << i for i in range(2, 7))):
        for op in ("gated_conv", "recurrence"):
            for training in (False, True):
                name = f"{op} {'forward+backward' if training else 'forward'} bf16 1x{b.width} L={length}"
                yield name, partial(_one_row, b, op, training, length)


def _one_row(b: Bench, op: str, training: bool, length: int) -> dict[str, Any]:
    spectrum, _ = b.spectra(length, b.width)
    moved = (4 + 7 * training) * length * b.width * HALF.itemsize
    turns = [call(b, op, 1, length, HALF, spectrum, training) for _ in range(variants(moved))]
    seconds, bound = b.time(turns), moved / b.rates["copy"]
    return row(seconds * 1e3, "ms", **{"bound ms": bound * 1e3, "of the bandwidth bound": bound / seconds})
