"""The plot of the settings: each variant's score on each job over the best one's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from experiments.shared import plots


def draw(found: dict[str, Any], path: Path) -> None:
    """Draws ``results.json`` into a PNG: a panel a job, a line a variant."""
    table = found["table"]
    jobs = list(dict.fromkeys(name for row in table.values() for name in row))
    labels = list(table)[::-1]
    figure, panels = plots.figure(len(jobs), size=(2.6, 0.24 * len(labels) + 1.2))
    for panel, job in zip(panels, jobs, strict=True):
        for i, label in enumerate(labels):
            if (row := table[label].get(job)) is None:
                continue
            panel.plot([row["least"], row["largest"]], [i, i], color="C0", alpha=0.5, lw=3)
            panel.plot(row["mean"], i, "o", color="C0")
        panel.set_title(job)
        panel.set_ylim(-0.7, len(labels) - 0.3)  # of all panels, whichever variants they have
        panel.set_yticks(range(len(labels)), labels if panel is panels[0] else [""] * len(labels))
    plots.save(figure, path)
