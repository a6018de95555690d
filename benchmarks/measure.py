"""Timing, memory and records that the benchmarks share."""

from __future__ import annotations

import ctypes
import gc
import json
import os
import platform
import shutil
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch

from hyena import ops

RESULTS = Path(__file__).resolve().parent / "results"


def interleaved(
    functions: dict[str, Callable[[], object]],
    *,
    repeats: int,
    device: str = "cpu",
    budget: float | None = None,
    warm: bool = True,
) -> dict[str, float]:
    """Median seconds of each function. They take turns, so that a slow minute of the machine meets all of them.

    Args:
        functions: by name.
        repeats: rounds.
        device: "cpu", or a GPU's name.
        budget: seconds; a function that has taken so many is left out of the rounds that follow.
        warm: whether each is called once before it is timed.
    """
    times: dict[str, list[float]] = {name: [] for name in functions}
    if warm:
        for function in functions.values():
            function()
    for _ in range(repeats):
        for name, function in functions.items():
            if budget is None or sum(times[name]) < budget:
                times[name].append(_seconds(function, device))
    return {name: median(values) for name, values in times.items()}


def _seconds(function: Callable[[], object], device: str) -> float:
    if device == "cpu":
        start = time.perf_counter()
        function()
        return time.perf_counter() - start
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    begin.record()
    function()
    end.record()
    torch.cuda.synchronize()
    return begin.elapsed_time(end) / 1e3


# How long the device is kept waiting (about 10 ms) while the host queues what is timed.
_HEAD_START = 20_000_000
# Bytes that inputs must exceed before no cache of a device holds them all: twice the largest there is.
_BEYOND_CACHE = 256 << 20


def variants(bytes_each: int) -> int:
    """How many sets of inputs, of so many bytes each, must take turns so that none is still in a device's cache."""
    return max(1, min(16, -(-_BEYOND_CACHE // max(1, bytes_each))))


def queued(
    functions: dict[str, Sequence[Callable[[], object]]], *, repeats: int, device: str = "cpu"
) -> dict[str, float]:
    """Median seconds that each function takes the device, without the time that the host takes to launch it.

    Args:
        functions: by name, the same work on several sets of inputs (:func:`variants`), which take turns.
        repeats: rounds; a function that takes long gets fewer, but at least three.
    """
    times: dict[str, list[float]] = {name: [] for name in functions}
    for turns in functions.values():
        for function in turns:
            function()
    first = sum(_seconds(turns[0], device) for turns in functions.values())
    for i in range(max(3, min(repeats, int(0.5 / max(first, 1e-9))))):
        if device == "cpu":
            for name, turns in functions.items():
                times[name].append(_seconds(turns[i % len(turns)], device))
            continue
        torch.cuda.synchronize()
        torch.cuda._sleep(_HEAD_START)
        events = {name: [torch.cuda.Event(enable_timing=True) for _ in range(2)] for name in functions}
        for name, turns in functions.items():
            events[name][0].record()
            turns[i % len(turns)]()
            events[name][1].record()
        torch.cuda.synchronize()
        for name, (begin, end) in events.items():
            times[name].append(begin.elapsed_time(end) / 1e3)
    return {name: median(values) for name, values in times.items()}


def peak_bytes(function: Callable[[], object], device: str = "cpu") -> int | None:
    """Memory that a call needs at its peak beyond what is there before it; None where it cannot be measured."""
    if device != "cpu":
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        function()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    gc.collect()
    try:
        ops.clear_tables()  # what earlier calls have freed counts again
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark of resident memory
        before = _status("VmRSS")
        function()
        return max(0, _status("VmHWM") - before)
    except OSError:
        return None


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise OSError(f"no {field} in /proc/self/status")


def machine(device: str) -> dict[str, Any]:
    """What the figures were measured on."""
    name = torch.cuda.get_device_name() if device != "cpu" else _processor()
    return {
        "device": name,
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "commit": current_commit(),
        "date": time.strftime("%Y-%m-%d"),
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def current_commit() -> str | None:
    """The commit that is checked out, where there is a git to ask."""
    here = Path(__file__).resolve().parent
    if shutil.which("git") is None:
        return None
    found = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=here, capture_output=True, text=True, check=False
    )
    return found.stdout.strip() or None


def write_whole(path: Path, record: object, indent: int | None = None) -> None:
    """Writes JSON in one step: whoever reads it, and whatever ends this process, there is always a whole file."""
    beside = path.with_name(path.name + ".new")
    beside.write_text(json.dumps(record, indent=indent) + "\n")
    beside.replace(path)


def write(name: str, record: dict[str, Any]) -> Path:
    """Writes a record as JSON under ``benchmarks/results`` and returns where."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps(record, indent=1) + "\n")
    return path


def table(rows: list[dict[str, Any]]) -> str:
    """Rows of one shape as aligned columns."""
    columns = list(rows[0])
    cells = [[_cell(row[c]) for c in columns] for row in rows]
    widths = [max(len(c), *(len(row[i]) for row in cells)) for i, c in enumerate(columns)]
    lines = ["  ".join(c.rjust(w) for c, w in zip(columns, widths, strict=True))]
    lines += ["  ".join(c.rjust(w) for c, w in zip(row, widths, strict=True)) for row in cells]
    return "\n".join(lines)


def _cell(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:.3g}" if isinstance(value, float) else str(value)
