"""Runtime of Hyena and of attention by length (arXiv 2302.10866, figure 4.3), forward and training; peak memory.

    python -m experiments.runtime                          # this machine's processor, four minutes of two cores
    python -m experiments.runtime --full --device cuda     # to a million positions on a GPU
    python -m experiments.runtime --report                 # table, JSON and plot of what there is

Both with their projections; attention is causal scaled_dot_product_attention. Published, on a GPU that is not named:
Hyena is faster than dense attention from 2048 positions on and than FlashAttention from 4096 to 8192 on, twice as fast
at 8192. Records of GPUs in benchmarks/results are reported and drawn beside what is measured here. Nothing else should
be running.
"""

from __future__ import annotations

import multiprocessing
from pathlib import Path
from typing import Any

from experiments.runtime import memory
from experiments.runtime.layers import call, interleaved, names, peak_bytes, queued
from experiments.runtime.report import report
from experiments.shared import runs

HERE = Path(__file__).resolve().parent
# Width, positions in a batch, and lengths. Two cores: as benchmarks/speed.py; a GPU: as its records.
SIZES: dict[str, tuple[int, int, list[int]]] = {
    "toy": (64, 256, [64, 128]),
    "default": (256, 16384, [1 << i for i in range(7, 17)]),
    "full": (768, 65536, [1 << i for i in range(9, 21)]),
}
# Beyond, a call of attention takes seconds on a CPU: measured with one seed, and at the longest once.
LONG = 16384


def grid(size: str, seeds: list[int]) -> list[runs.Settings]:
    """Times by length and seed; memory by layer."""
    width, tokens, lengths = SIZES[size]
    common = {"width": width, "tokens": tokens}
    modes = (False, True)
    times = [
        {"what": "time", "length": length, "training": training, **common, "seed": seed}
        for seed in seeds
        for length in lengths
        for training in modes
        if size == "full" or length <= LONG or seed == seeds[0]
    ]
    if size == "full":
        return times
    peaks = [
        {"what": "memory", "layer": name, "training": training, "lengths": lengths, **common}
        for name in names("cpu")
        for training in (modes if size == "default" else modes[:1])
    ]
    return times + peaks


def work(settings: runs.Settings, place: runs.Place) -> dict[str, Any]:
    """Measures one length, or the memory of one layer."""
    if multiprocessing.parent_process() is not None:
        raise ValueError("times are measured one after the other, with all threads: leave --workers at 1")
    width, tokens, training = settings["width"], settings["tokens"], settings["training"]
    if settings["what"] == "memory":
        lengths = settings["lengths"]
        given = {"name": settings["layer"], "training": training, "width": width, "tokens": tokens, "lengths": lengths}
        return {"bytes": dict(zip(map(str, lengths), memory.apart(**given), strict=True))}
    length, device = settings["length"], place.device
    calls = {name: call(name, width, length, tokens, training=training, device=device) for name in names(device)}
    if device == "cpu":
        few = {"repeats": 1, "warm": False} if length > 2 * LONG else {"repeats": 3}
        return {"seconds": interleaved(calls, **few)}
    peaks = {name: peak_bytes(each, device) for name, each in calls.items()}
    repeats = 10 if length <= 1 << 17 else 3
    times = queued({name: [each] for name, each in calls.items()}, repeats=repeats, device=device)
    return {"seconds": times, "bytes": peaks}


if __name__ == "__main__":
    runs.command(__doc__, here=HERE, grid=grid, work=work, report=report)
