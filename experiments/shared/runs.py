"""Runs of an experiment, each with a result file of its own: what was killed goes on, what is there is not run again.

An experiment is a grid of settings (plain dicts), a function ``work(settings, place)`` that returns the result of one,
and a function that draws the results. :func:`command` makes a command of them.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import hashlib
import importlib
import json
import multiprocessing
import os
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from experiments.shared.record import where
from hyena.command.folder import BusyError, locked, replacing

Settings = dict[str, Any]
SIZES = ("toy", "default", "full")


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a run computes, and where it may leave what it needs to go on.

    Attributes:
        device: "cpu" or a GPU's name.
        state: a file of the run's own for its checkpoint; it is removed when the run is done.
        label: the run in a few words, for progress bars.
    """

    device: str
    state: Path
    label: str


Work = Callable[[Settings, Place], dict[str, Any]]


def name_of(settings: Settings) -> str:
    """A file name for these settings: some of them readable, all of them in the hash."""
    text = json.dumps(settings, sort_keys=True)
    words = "-".join(str(value) for value in settings.values() if isinstance(value, (str, int, float)))
    safe = "".join(c if c.isalnum() or c in "-._" else "_" for c in words)[:80]
    return f"{safe}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def label_of(settings: Settings) -> str:
    """These settings in one line."""
    return " ".join(f"{name}={value}" for name, value in settings.items())


def distinct(grid: Iterable[Settings]) -> list[Settings]:
    """The grid without repetitions: the same settings are the same run."""
    return list({name_of(settings): settings for settings in grid}.values())


def run_all(work: Work, grid: Sequence[Settings], out: Path, *, workers: int = 1, device: str = "cpu") -> None:
    """Does every run of the grid that has no result in ``out``; with several workers, each has one thread.

    Several commands may be at work in one folder: a run is done by whoever comes first. After an exception in a run,
    those that have begun end, and no other begins.
    """
    out.mkdir(parents=True, exist_ok=True)
    grid = distinct(grid)
    made = where(device)  # now: the code that runs is the code that is here before the first run
    left = [settings for settings in grid if not _result(out, settings).exists()]
    if len(left) < len(grid):
        print(f"{len(grid) - len(left)} of {len(grid)} runs have a result in {out}")
    with tqdm(total=len(left), desc="runs", unit="run", smoothing=0) as bar:
        if workers == 1:
            for settings in left:
                bar.write(_one(work, settings, out, device, made), file=sys.stdout)
                bar.update()
            return
        with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _start_worker) as pool:
            pending = [pool.submit(_one, work, settings, out, device, made) for settings in left]
            try:
                for done in as_completed(pending):
                    bar.write(done.result(), file=sys.stdout)
                    bar.update()
            except BaseException as error:
                for each in pending:
                    each.cancel()
                bar.write(f"{type(error).__name__}: {error}; waiting for the runs that have begun", file=sys.stdout)
                raise


def _start_worker() -> None:
    """One thread; and an end with the process that asked, which may be killed: nobody else would end this one."""
    torch.set_num_threads(1)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def end() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=end, daemon=True).start()


def _result(out: Path, settings: Settings) -> Path:
    return out / f"{name_of(settings)}.json"


def _one(work: Work, settings: Settings, out: Path, device: str, made: dict[str, Any]) -> str:
    """Does one run, writes its result, and says it in a line."""
    path = _result(out, settings)
    place, lock = Place(device, path.with_suffix(".pt"), label_of(settings)), path.with_suffix(".lock")
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(locked(lock, "another process is at it"))
        except BusyError as busy:
            return f"{place.label}: {busy}"
        if path.exists():
            lock.unlink(missing_ok=True)
            return f"{place.label}: another process has done it"
        # Whatever was run before in this process, and whether the work seeds itself or not.
        torch.manual_seed(settings.get("seed", 0))
        began = time.perf_counter()
        result = work(settings, place)
        seconds = time.perf_counter() - began
        here = {**made, "threads": torch.get_num_threads()}
        _write_json(path, {"settings": settings, "result": result, "seconds": round(seconds, 2), "made": here})
        for left in (place.state, lock):
            left.unlink(missing_ok=True)
    numbers = {name: value for name, value in result.items() if isinstance(value, (int, float))}
    found = ", ".join(f"{name} {value:.4g}" for name, value in numbers.items())
    return f"{place.label}: {found} ({seconds:.0f} s)"


def _write_json(path: Path, what: dict[str, Any]) -> None:
    text = json.dumps(what, indent=1) + "\n"  # first: what JSON does not take is to leave no file
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        file.write(text.encode())


def read(out: Path, grid: Iterable[Settings]) -> list[dict[str, Any]]:
    """The runs of the grid that have a result, in the grid's order."""
    return [json.loads(path.read_text()) for settings in grid if (path := _result(out, settings)).exists()]


def write(path: Path, what: str, runs: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
    """Writes ``results.json``: every run's settings and result, and once what made them.

    Args:
        path: of the file.
        what: what was measured, in a sentence, with units.
        runs: as :func:`read` returns them.
        more: what else is to be in the file, such as tables.

    Returns:
        What was written.
    """
    made: list[dict[str, Any]] = []
    rows = []
    for run in runs:
        if run["made"] not in made:
            made.append(run["made"])
        rows.append({**run, "made": made.index(run["made"])})
    found = {"what": what, **more, "made": made, "runs": rows}
    _write_json(path, found)
    return found


def spread(values: Iterable[float]) -> dict[str, Any]:
    """Mean, least and largest of some seeds' numbers, and how many there are."""
    values = list(values)
    return {"mean": statistics.fmean(values), "least": min(values), "largest": max(values), "seeds": len(values)}


def by_seed(runs: Iterable[dict[str, Any]], result: str) -> list[dict[str, Any]]:
    """Runs that differ in the seed alone as one row: their settings, and :func:`spread` of a result."""
    rows: dict[str, tuple[Settings, list[float]]] = {}
    for run in runs:
        settings = {name: value for name, value in run["settings"].items() if name != "seed"}
        rows.setdefault(json.dumps(settings, sort_keys=True), (settings, []))[1].append(run["result"][result])
    return [{"settings": settings, **spread(values)} for settings, values in rows.values()]


def command(
    document: str,
    *,
    here: Path,
    grid: Callable[[str, list[int]], list[Settings]],
    work: Work,
    report: Callable[[list[dict[str, Any]], Path], None],
) -> None:
    """The command of an experiment: runs what has no result yet, then reports all there is.

    Args:
        document: the script's docstring.
        here: the script's folder, which gets ``results.json`` and the plot, except of toy runs.
        grid: the settings of every run, of a size (of ``SIZES``) and seeds.
        work: does one run. A function of a module, because other processes import it.
        report: prints the table and writes JSON and plot into a folder, of the runs that there are.
    """
    parser = argparse.ArgumentParser(description=document, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--full", action="store_const", const="full", dest="size", help="the published size, for a GPU")
    size.add_argument("--toy", action="store_const", const="toy", dest="size", help="a look at whether it runs")
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME=VALUE", help="runs with these settings alone")
    parser.add_argument("--workers", type=int, default=1, help="processes, of one thread each if there are several")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, help="folder of each run's result (default: out/experiments/NAME/SIZE)")
    parser.add_argument("--results", type=Path, help="folder of results.json and the plot (default: the script's own)")
    parser.add_argument("--report", action="store_true", help="run nothing, only report what there is")
    parser.set_defaults(size="default")
    options = parser.parse_args()
    out = options.out or Path("out/experiments") / here.name / options.size
    results = options.results or (here if options.size == "default" else out)
    every = distinct(grid(options.size, options.seeds))
    wanted = only(every, options.only)
    if not options.report:
        run_all(_importable(work), wanted, out, workers=options.workers, device=options.device)
    runs = read(out, every)
    if not runs:
        print(f"no results in {out}")
        return
    if len(runs) < len(every):
        print(f"{len(runs)} of the {len(every)} runs have a result so far")
    if len(versions := {run["made"]["package"] for run in runs}) > 1:
        print(f"these runs are of {len(versions)} versions of src/hyena: delete in {out} what is to be run again")
    report(runs, results)


def _importable(work: Work) -> Work:
    """The same function by its module's name: other processes do not find what a package's ``__main__`` defines."""
    spec = sys.modules["__main__"].__spec__
    if work.__module__ != "__main__" or spec is None:
        return work
    found: Work = getattr(importlib.import_module(spec.name), work.__qualname__)
    return found


def only(grid: list[Settings], conditions: list[str]) -> list[Settings]:
    """The runs whose settings are as the conditions ``NAME=VALUE`` say; several values of a name are alternatives.

    Raises:
        SystemExit: no run is.
    """
    wanted: dict[str, set[str]] = {}
    for condition in conditions:
        name, equals, value = condition.partition("=")
        if not equals or not any(name in s and str(s[name]) == value for s in grid):
            sys.exit(f"no run has {condition!r}; there are {_known(grid)}")
        wanted.setdefault(name, set()).add(value)
    found = [s for s in grid if all(name in s and str(s[name]) in values for name, values in wanted.items())]
    if not found:
        sys.exit(f"no run has {' and '.join(conditions)} at once; there are {_known(grid)}")
    return found


def _known(grid: list[Settings]) -> str:
    """The settings of a grid and their values, in a line."""
    values: dict[str, dict[str, None]] = {}
    for settings in grid:
        for name, value in settings.items():
            values.setdefault(name, {})[str(value)] = None
    return "; ".join(f"{name}={'|'.join(each)}" for name, each in values.items())
