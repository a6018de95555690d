"""Plots of the command. Importing it needs matplotlib."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hyena.command.folder import replacing

try:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        'the plot needs matplotlib: pip install "hyena[train]", or pass --no-plot', name="matplotlib"
    ) from error

_SMOOTHING = 20  # steps over which the training loss is averaged: one batch says little


def plot_times(rows: Sequence[Any], where: str, path: Path) -> None:
    """Draws the times of ``hyena bench`` against the length."""
    figure = Figure(figsize=(9, 4), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, what in zip(figure.subplots(1, 2), ("forward", "training"), strict=True):
        for name, style in (("hyena", "o-"), ("attention", "s--")):
            points = [(r.length, getattr(r, name)[what] / r.batch) for r in rows if getattr(r, name)[what] is not None]
            if points:
                axes.plot(*zip(*points, strict=True), style, label="Hyena" if name == "hyena" else name)
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_xticks([row.length for row in rows], [str(row.length) for row in rows], rotation=45)
        axes.minorticks_off()
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.set(xlabel="length", ylabel="ms a row", title="forward" if what == "forward" else "training step")
        axes.grid(alpha=0.3)
        axes.legend()
    figure.suptitle(where, fontsize=10)
    _save(figure, path)


def plot_losses(train: Sequence[float], validation: Sequence[tuple[int, float]], title: str, path: Path) -> None:
    """Draws both losses of ``hyena train`` against the step."""
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    ends = range(1, len(train) + 1)
    smooth = [sum(train[max(0, i - _SMOOTHING) : i]) / min(i, _SMOOTHING) for i in ends]
    axes.plot(ends, smooth, label=f"training, mean of {_SMOOTHING} steps")
    axes.plot(*zip(*validation, strict=True), "o-", label=f"validation, {validation[-1][1]:.3f} at the end")
    axes.set(xlabel="step", ylabel="loss (nats a character)", title=title)
    axes.grid(alpha=0.3)
    axes.legend()
    _save(figure, path)


def _save(figure: Any, path: Path) -> None:
    with replacing(path) as file:
        figure.savefig(file, dpi=120, format="png")
