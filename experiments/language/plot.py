"""The plot: test loss against operations and against time, for each text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from experiments.language.models import WORDS
from experiments.shared import plots
from experiments.shared.runs import spread


def draw(found: dict[str, Any], path: Path) -> None:
    """Draws ``results.json`` into a PNG."""
    texts = [text for text, table in found["tables"].items() if table["models"]]
    if not texts:
        return
    made, panels = plots.figure(2, len(texts), size=(5.5, 3.8))
    for i, text in enumerate(texts):
        table = found["tables"][text]
        for model, row in table["models"].items():
            same = [
                run["result"]
                for run in found["runs"]
                if run["settings"].get("model") == model and run["settings"]["text"] == text
            ]
            steps = [point["step"] for point in same[0]["history"]]
            losses = [spread(run["history"][j]["loss"] for run in same) for j in range(len(steps))]
            spent = [row["flops"] * step / steps[-1] / 1e12 for step in steps]
            plots.line(panels[2 * i], spent, losses, WORDS[model], lw=1.2)
            if "seconds_a_step" in row:
                plots.line(panels[2 * i + 1], [row["seconds_a_step"] * s for s in steps], losses, WORDS[model], lw=1.2)
        for panel, x in zip(panels[2 * i :], ("operations / 10^12", "seconds (steps timed side by side)")):
            for order, row in table["n_grams"].items():
                if order != "1":
                    panel.axhline(
                        row["loss"], color="k", lw=0.8, ls="--" if order == "3" else ":", label=f"{order}-gram"
                    )
            panel.set(xlabel=x, ylabel="test loss (nats a token)", title=text)
    made.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=8)
    plots.save(made, path)
