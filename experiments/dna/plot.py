"""The plot: bits against the context that is given, and against the bases trained on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from experiments.shared import plots, runs


def draw(orders: list[dict[str, Any]], table: list[dict[str, Any]], trained: list[dict[str, Any]], path: Path) -> None:
    """Draws the rows of the report's tables, and the histories of the runs."""
    made, (by_context, over_training) = plots.figure(2)
    if len(orders) > 1:
        some = [each for each in orders if each["order"] > 0]
        by_context.plot(
            [each["order"] for each in some], [each["bits"] for each in some], "k.--", lw=1, label="Markov, order k"
        )
        by_context.axhline(orders[0]["bits"], color="0.6", ls=":", label="frequencies of the bases")
        best = min(each["bits"] for each in orders)
        over_training.axhline(best, color="k", ls="--", lw=1, label="best Markov model")
    for row in table:
        mixer, context = row["settings"]["mixer"], row["settings"]["context"]
        label = f"{mixer}, trained at {context:,}"
        points = row["by_context"]
        style = {"ls": "-" if mixer == "hyena" else "-."}
        plots.line(by_context, [point["context"] for point in points], points, label, **style)
        alike = [
            r["result"]["history"]
            for r in trained
            if r["settings"]["mixer"] == mixer and r["settings"]["context"] == context
        ]
        bases_a_step = row["settings"]["bases_a_step"]
        steps = [each["step"] * bases_a_step / 1e6 for each in alike[0]]
        spreads = [runs.spread(each["bits"] for each in at) for at in zip(*alike, strict=True)]
        plots.line(over_training, steps, spreads, label, **style)
    by_context.set(xscale="log", xlabel="bases of context given (at most)", ylabel="bits of a held-out base")
    over_training.set(xlabel="million bases trained on", ylabel="bits of a held-out base, at the context of training")
    for panel in (by_context, over_training):
        panel.legend(fontsize=7)
    plots.save(made, path)
