"""What family.py and family_mixers.py share: their options, a table for each length, the record and its plot."""

from __future__ import annotations

import argparse
import inspect
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from family_plot import draw
from measure import RESULTS, interleaved, machine, table, write_whole

# What each function may take, in seconds: slow ones are repeated less, once at least.
BUDGET = 1.5

# Steps of decoding that are timed together: what they cost differs from one to the next.
STEPS = 64


def exported(room: ModuleType, base: type, sizes: list[str], first: list[str]) -> list[str]:
    """Names of the classes that a package exports and that these sizes are enough for, some of them first."""
    found = [
        name
        for name in room.__all__
        if inspect.isclass(kind := getattr(room, name))
        and issubclass(kind, base)
        and not inspect.isabstract(kind)
        and list(inspect.signature(kind).parameters)[: len(sizes)] == sizes
        and not any(p.default is p.empty for p in list(inspect.signature(kind).parameters.values())[len(sizes) :])
    ]
    return [*first, *(name for name in found if name not in first)]


def timed(functions: dict[str, Callable[[], object]], repeats: int, device: str) -> dict[str, float]:
    """Median milliseconds of each."""
    times = interleaved(functions, repeats=repeats, device=device, budget=BUDGET)
    return {name: 1e3 * seconds for name, seconds in times.items()}


def run(
    doc: str,
    kind: str,
    names: list[str],
    measure: Callable[[list[str], argparse.Namespace, int], list[dict[str, Any]]],
    lengths: list[int],
    panels: dict[str, str],
) -> None:
    """Measures what the command line asks for.

    Args:
        doc: the help.
        kind: ``"filter"`` or ``"mixer"``.
        names: all there are; the first is what the others are compared with.
        measure: rows of chosen names at one length.
        lengths: the usual ones.
        panels: of the plot.
    """
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--lengths", type=int, nargs="+", default=lengths)
    parser.add_argument("--tokens", type=int, default=16384, help="of a batch")
    parser.add_argument(f"--{kind}s", dest="names", nargs="+", default=names, help=f"beside {names[0]}")
    parser.add_argument("--repeats", type=int, default=5, help="at most; less where a call takes long")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder for the record and the plot")
    options = parser.parse_args()
    if unknown := sorted(set(options.names) - set(names)):
        parser.error(f"no such {kind}s: {', '.join(unknown)}; there are {', '.join(names)}")
    chosen = list(dict.fromkeys([names[0], *options.names]))
    record: dict[str, Any] = {**machine(options.device), "dtype": "float32", "baseline": names[0], "rows": []}
    begin, path = time.perf_counter(), options.results / f"family-{kind}s-{options.device}.json"
    options.results.mkdir(exist_ok=True)
    for length in options.lengths:
        torch.manual_seed(0)
        rows = measure(chosen, options, length)
        record["rows"] += rows
        print(table(rows), flush=True)
        write_whole(path, record, indent=1)
    draw(record, path.with_suffix(".png"), kind, panels)
    print(f"{path} and {path.with_suffix('.png').name}, in {time.perf_counter() - begin:.0f} s")
