"""The plot: test error after every epoch, a panel a task."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from experiments.shared import plots, runs

TITLES = {
    "sequential": "pixel after pixel",
    "permuted": "pixels in a random order",
    "vit": "vision transformer",
    "grid": "at the image's resolution",
}


def draw(found: list[dict[str, Any]], path: Path) -> None:
    """Draws the histories of the runs: means over seeds, and from the least to the largest."""
    tasks = list(dict.fromkeys(run["settings"]["task"] for run in found))
    made, panels = plots.figure(len(tasks), size=(4.0, 3.6))
    for task, panel in zip(tasks, panels, strict=True):
        of_task = [run for run in found if run["settings"]["task"] == task]
        for name in dict.fromkeys(run["settings"]["model"] for run in of_task):
            alike = [run["result"]["history"] for run in of_task if run["settings"]["model"] == name]
            epochs = range(1, len(alike[0]) + 1)
            spreads = [runs.spread(row["error"] for row in at) for at in zip(*alike, strict=True)]
            plots.line(panel, epochs, spreads, name)
        panel.set(title=TITLES[task], xlabel="epoch", ylabel="test error, %")
        plots.log_scale(panel)
        panel.xaxis.get_major_locator().set_params(integer=True)
        panel.legend(fontsize=7)
    plots.save(made, path)
