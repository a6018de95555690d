"""What the taps of every filter of the family cost beside Hyena's own: time, gradients, memory, parameters.

    python benchmarks/family.py [--device cpu] [--width 256] [--lengths 1024 4096 16384 65536] [--filters S4D EMA …]
    python benchmarks/family.py --dry-run           # toy sizes; nothing is written

One causal filter of D = 256 channels of each kind, with its defaults. Times are medians of calls that took turns with
``HyenaFilter``'s in the same run, and the table has their ratios to it: the taps without a gradient, and with the
gradient of every weight. ``peak MB`` is what a call with gradients needs at most beside what was there before,
``state`` the numbers that decoding keeps for each channel. The cost of mixers is in ``family_mixers.py``. Writes
results/family-filters-<device>.json and draws results/family-filters-<device>.png.
"""

from __future__ import annotations

import argparse
import gc
import inspect
from typing import Any

import torch
from family_plot import draw
from measure import RESULTS, interleaved, machine, peak_bytes, table, write

import hyena.filters
from hyena.conv import LongConv
from hyena.filters import Filter

BASELINE = "HyenaFilter"
COLUMNS = ("taps", "train")


def names() -> list[str]:
    """Every exported filter, Hyena's first."""
    kinds = {name: getattr(hyena.filters, name) for name in hyena.filters.__all__}
    found = [
        name
        for name, kind in kinds.items()
        if issubclass(kind, Filter) and not inspect.isabstract(kind) and name != BASELINE
    ]
    return [BASELINE, *found]


def state_of(filter: Filter) -> int | None:
    """Numbers that decoding keeps for each channel; None where a filter has no steps."""
    conv = LongConv(filter.channels, filter.l_max, filter=filter)
    if conv.why_not_online() is not None:
        return None
    modes = filter.modes()
    if modes is not None:
        return modes.decay.size(-1) * (1 if modes.is_real else 2)
    return filter.l_max if filter.support is None else min(filter.support, filter.l_max) - 1


def measure(chosen: list[str], width: int, length: int, device: str, repeats: int) -> list[dict[str, Any]]:
    """One row for each filter."""
    filters = {name: getattr(hyena.filters, name)(width, length, device=device) for name in chosen}
    grads = {name: torch.randn(f.taps_shape(length), device=device) for name, f in filters.items()}

    def taps(f: Filter) -> object:
        with torch.no_grad():
            return f(length)

    def train(name: str) -> None:
        filters[name].zero_grad()
        filters[name](length).backward(grads[name])

    times = {
        "taps": interleaved({n: lambda f=f: taps(f) for n, f in filters.items()}, repeats=repeats, device=device),
        "train": interleaved({n: lambda n=n: train(n) for n in filters}, repeats=repeats, device=device),
    }
    rows = []
    for name, f in filters.items():
        row: dict[str, Any] = {"filter": name, "D": width, "L": length}
        row["parameters K"] = sum(p.numel() for p in f.parameters()) / 1e3
        for what in COLUMNS:
            row[f"{what} ms"] = times[what][name] * 1e3
            row[f"{what} / Hyena"] = times[what][name] / times[what][BASELINE]
        gc.collect()
        peak = peak_bytes(lambda n=name: train(n), device)
        row["peak MB"] = None if peak is None else peak / 1e6
        row["state"] = state_of(f)
        rows.append(row)
    return rows


def main() -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--lengths", type=int, nargs="+", default=[1024, 4096, 16384, 65536])
    parser.add_argument("--filters", nargs="+", default=names(), help="beside HyenaFilter, which all ratios are to")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--dry-run", action="store_true")
    args = parser.parse_args()
    lengths, width, repeats = args.lengths, args.width, args.repeats
    if args.dry_run:
        lengths, width, repeats = [64, 96], 4, 1
    unknown = sorted(set(args.filters) - set(names()))
    if unknown:
        parser.error(f"no such filters: {', '.join(unknown)}; there are {', '.join(names())}")
    chosen = list(dict.fromkeys([BASELINE, *args.filters]))
    record: dict[str, Any] = {**machine(args.device), "dtype": "float32", "baseline": BASELINE, "rows": []}
    for length in lengths:
        rows = measure(chosen, width, length, args.device, repeats)
        record["rows"] += rows
        print(table(rows), flush=True)
        if not args.dry_run:
            write(f"family-filters-{args.device}", record)
    if not args.dry_run:
        draw(
            record,
            RESULTS / f"family-filters-{args.device}.png",
            "filter",
            [*(f"{what} / Hyena" for what in COLUMNS), "peak MB"],
            "taps",
        )


if __name__ == "__main__":
    main()
