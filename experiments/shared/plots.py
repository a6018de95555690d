"""What the experiments' plots have in common."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator


def figure(columns: int = 1, rows: int = 1, *, size: tuple[float, float] = (5.5, 4.0)) -> tuple[Figure, list[Axes]]:
    """A figure of panels, each of ``size`` inches, row by row."""
    made = Figure(figsize=(size[0] * columns, size[1] * rows), layout="constrained")
    FigureCanvasAgg(made)
    panels = made.subplots(rows, columns, squeeze=False)
    for panel in panels.flat:
        panel.grid(alpha=0.3)
    return made, list(panels.flat)


def line(panel: Axes, x: Sequence[float], rows: Sequence[dict[str, Any]], label: str | None, **style: Any) -> None:
    """Means over seeds as a line, and from the least to the largest as a band; ``rows`` are spreads."""
    (drawn,) = panel.plot(x, [row["mean"] for row in rows], marker="o", ms=4, label=label, **style)
    least, largest = [row["least"] for row in rows], [row["largest"] for row in rows]
    panel.fill_between(x, least, largest, alpha=0.15, color=drawn.get_color(), lw=0)


def log_scale(panel: Axes) -> None:
    """A logarithmic y-axis with plain numbers at 1, 2 and 5 of each power of ten."""
    panel.set_yscale("log")
    panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    panel.yaxis.set_major_formatter("{x:g}")
    panel.yaxis.set_minor_formatter("")


def save(made: Figure, path: Path) -> None:
    """Writes a PNG, and says where."""
    path.parent.mkdir(parents=True, exist_ok=True)
    made.savefig(path, dpi=110)
    print(f"plot     {path}")
