"""What a run leaves to read: a line of JSON for each step, which blocks each process saw, and the loss curve."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

METRICS = "metrics.jsonl"


def read(path: Path) -> list[dict[str, Any]]:
    """The lines of a file; a last one that was cut off by a kill is left out."""
    if not path.exists():
        return []
    lines = path.read_text().splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]


def cut(folder: Path, step: int) -> None:
    """Takes out what was written after ``step``: those steps are done again."""
    for path in folder.glob("*.jsonl"):
        kept = [line for line in read(path) if line["step"] <= step]
        beside = path.with_name(path.name + ".new")
        beside.write_text("".join(json.dumps(line) + "\n" for line in kept))
        beside.replace(path)


def claim(folder: Path, identity: dict[str, Any], begun: bool) -> None:
    """Writes down whose folder this is, or checks it if a run has begun there.

    Raises:
        ValueError: it is of a run with other settings, which are named.
    """
    path, mine = folder / "run.json", json.loads(json.dumps(identity))
    if begun and path.exists():
        then = {"mlp": "gelu", **json.loads(path.read_text())}  # what all models had when it was no setting
        if differing := [f"{k} {then.get(k)} (now {v})" for k, v in mine.items() if then.get(k) != v]:
            raise ValueError(
                f"{folder} has a run with other settings: {', '.join(differing)}. Choose another --out, or --restart"
            )
        return
    folder.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(path.name + ".new")
    beside.write_text(json.dumps(mine, indent=1) + "\n")
    beside.replace(path)


class Lines:
    """A file that each step adds a line of JSON to."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("a")

    def add(self, **values: Any) -> None:
        self._file.write(json.dumps(values) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def plot(folder: Path, title: str) -> Path:
    """Draws the loss and the length of rows against the step, from metrics.jsonl."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    lines = read(folder / METRICS)
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.plot([x["step"] for x in lines], [x["loss"] for x in lines], linewidth=1)
    axes.set(xlabel="step", ylabel="loss (nats per byte)", title=title)
    axes.grid(alpha=0.3)
    beside = axes.twinx()
    beside.step([x["step"] for x in lines], [x["length"] for x in lines], color="0.6", linestyle=":")
    beside.set_ylabel("tokens of a row", color="0.4")
    beside.set_yscale("log", base=2)
    path = folder / "loss.png"
    partial = folder / f"loss.png.{os.getpid()}"
    figure.savefig(partial, dpi=120, format="png")
    partial.replace(path)
    return path
