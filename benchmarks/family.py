"""What every filter of the family costs beside Hyena's own: taps, their gradients, a decoding step, memory.

    python benchmarks/family.py [--device cpu] [--width 256] [--lengths 1024 4096 16384 65536] [--filters S4D EMA …]

One causal filter of D = 256 channels of each kind, with its defaults. Times are medians of calls that took turns with
``HyenaFilter``'s in the same run, and the table has their ratios to it: the taps without a gradient, the taps and the
gradient of every weight, and a position of a row's online convolution (the mean of 64 after half a row). ``peak MB``
is what a call with gradients needs at most beside what was there before, ``state`` the numbers that decoding keeps for
each channel. Mixers are in ``family_mixers.py``. Writes results/family-filters-<device>.json, and .png.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import torch
from family_run import STEPS, exported, run, timed
from measure import peak_bytes

import hyena.filters
from hyena.conv import LongConv
from hyena.filters import Filter

NAMES = exported(hyena.filters, Filter, ["channels", "l_max"], ["HyenaFilter"])
COLUMNS = ("taps", "train", "step")
PANELS = {
    "taps / Hyena": "time of taps / Hyena's",
    "train / Hyena": "taps and gradients / Hyena's",
    "step / Hyena": "decoding step / Hyena's",
    "peak MB": "peak memory of gradients, MB",
    "state": "state, numbers a channel",
}


def steps_of(filter: Filter, length: int, device: str) -> tuple[Callable[[], None] | None, int | None]:
    """What decodes some positions after half a row, and what a channel's state has; None where there are no steps."""
    conv = LongConv(filter.channels, length, filter=filter, device=device).eval()
    if conv.why_not_online() is not None:
        return None, None
    with torch.no_grad():
        online = conv.online([filter.channels], length)
        memory = online.allocate(1)[0]
    x = torch.randn(1, 1, filter.channels, device=device)
    numbers = (torch.view_as_real(memory) if memory.is_complex() else memory).numel()

    def steps() -> None:
        with torch.no_grad():
            for at in range(length // 2, min(length // 2 + STEPS, length)):
                online.extend(0, memory, at, x)

    return steps, numbers // filter.channels


def measure(chosen: list[str], options: argparse.Namespace, length: int) -> list[dict[str, Any]]:
    """One row for each filter."""
    device, width, repeats = options.device, options.width, options.repeats
    filters = {name: getattr(hyena.filters, name)(width, length, device=device) for name in chosen}
    grads = {name: torch.randn(f.taps_shape(length), device=device) for name, f in filters.items()}
    steps, states = {}, {}
    for name, f in filters.items():
        step, states[name] = steps_of(f, length, device)
        if step is not None:
            steps[name] = step

    def taps(f: Filter) -> None:
        with torch.no_grad():
            f(length)

    def train(name: str) -> None:
        filters[name].zero_grad()
        filters[name](length).backward(grads[name])

    times = {
        "taps": timed({n: lambda f=f: taps(f) for n, f in filters.items()}, repeats, device),
        "train": timed({n: lambda n=n: train(n) for n in filters}, repeats, device),
        "step": {n: t / min(STEPS, length - length // 2) for n, t in timed(steps, repeats, device).items()},
    }
    rows = []
    for name, f in filters.items():
        row: dict[str, Any] = {"filter": name, "D": width, "L": length}
        row["parameters K"] = sum(p.numel() for p in f.parameters()) / 1e3
        for what in COLUMNS:
            row[f"{what} ms"] = times[what].get(name)
            row[f"{what} / Hyena"] = times[what][name] / times[what][NAMES[0]] if name in times[what] else None
        peak = peak_bytes(lambda n=name: train(n), device)
        row["peak MB"] = None if peak is None else peak / 1e6
        row["state"] = states[name]
        rows.append(row)
    return rows


if __name__ == "__main__":
    run(__doc__, "filter", NAMES, measure, [1024, 4096, 16384, 65536], PANELS)
