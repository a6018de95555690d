"""The plot: loss and error against modes, and milliseconds a token against the context."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from experiments.decoding.tables import WAYS
from experiments.shared import plots


def draw(found: dict[str, Any], path: Path) -> None:
    """Draws ``results.json`` into a PNG."""
    rows = [row for row in found["tables"]["distilled"] if row["modes"] is not None]
    speeds = found["tables"]["speeds"]
    batches = sorted({row["batch"] for row in speeds})
    made, panels = plots.figure(2 + len(batches), size=(4.6, 3.8))
    modes = [row["modes"] for row in rows]
    if rows:
        plots.line(panels[0], modes, [row["loss"] for row in rows], "distilled")
        panels[0].axhline(found["tables"]["distilled"][0]["loss"]["mean"], color="k", ls="--", lw=0.8, label="exact")
        panels[0].legend()
        plots.line(panels[1], modes, [row["mean_error"] for row in rows], "mean of the filters")
        plots.line(panels[1], modes, [row["largest_error"] for row in rows], "largest")
        plots.log_scale(panels[1])
        panels[1].legend()
    panels[0].set(xlabel="modes a filter", ylabel="test loss (nats a character)", title="Shakespeare, distilled")
    panels[1].set(xlabel="modes a filter", ylabel="relative l2 error", title="filters")
    for panel in panels[:2]:
        panel.set_xscale("log", base=2)
    for panel, batch in zip(panels[2:], batches):
        mine = [row for row in speeds if row["batch"] == batch]
        for way, words in WAYS.items():
            panel.plot(
                [r["context"] for r in mine], [r["milliseconds"][way] for r in mine], marker="o", ms=4, label=words
            )
        panel.set_xscale("log", base=2)
        plots.log_scale(panel)
        panel.set(xlabel="context", ylabel="milliseconds a token", title=f"whole models, batch {batch}")
        panel.legend(fontsize=7)
    plots.save(made, path)
