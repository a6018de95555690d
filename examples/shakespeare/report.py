"""What a run leaves behind: metrics.json and the loss curve."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from hyena.command.folder import replacing

# Steps over which the training loss is averaged: one batch says little.
SMOOTHING = 50


def write_json(values: dict[str, Any], path: Path) -> None:
    """Writes ``values``, all at once."""
    write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", path)


def write_text(text: str, path: Path) -> None:
    """Writes ``text``, all at once."""
    with replacing(path) as file:
        file.write(text.encode("utf-8"))


def smoothed(losses: list[float], over: int = SMOOTHING) -> list[float]:
    """Mean of up to ``over`` losses up to each step."""
    ends = range(1, len(losses) + 1)
    return [sum(losses[max(0, i - over) : i]) / min(i, over) for i in ends]


def plot_losses(train: list[float], validation: list[tuple[int, float]], title: str, path: Path) -> None:
    """Draws both losses against the step into a PNG."""
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.plot(range(1, len(train) + 1), smoothed(train), label=f"training, mean of {SMOOTHING} steps")
    steps, losses = zip(*validation, strict=True)
    axes.plot(steps, losses, "o-", label=f"validation, {losses[-1]:.3f} at the end")
    axes.set(xlabel="step", ylabel="loss (nats per character)", title=title)
    finite = [x for x in [*smoothed(train)[len(train) // 50 :], *losses] if math.isfinite(x)]
    if finite:  # the first steps would flatten the rest
        axes.set_ylim(min(finite) - 0.1, max(finite) + 0.1)
    axes.grid(alpha=0.3)
    axes.legend()
    with replacing(path) as file:
        figure.savefig(file, dpi=120, format="png")
