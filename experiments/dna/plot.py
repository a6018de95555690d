"""The plot: bits against the context that is given, and against the bases trained on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from experiments.shared import plots


def draw(orders: list[dict[str, Any]], table: list[dict[str, Any]], path: Path) -> None:
    """Draws the rows of the report's tables."""
    made, (by_context, over_training) = plots.figure(2)
    if len(orders) > 1:
        some = orders[1:]
        by_context.plot(
            [each["order"] for each in some], [each["bits"] for each in some], "k.--", lw=1, label="Markov, order k"
        )
        by_context.axhline(orders[0]["bits"], color="0.6", ls=":", label="frequencies of the bases")
        best = min(each["bits"] for each in orders)
        over_training.axhline(best, color="k", ls="--", lw=1)
    for row in table:
        settings = row["settings"]
        dashes = {"starts_at": "--", "time_unit": ":"}
        way = next((dashes[name] for name in dashes if name in settings), "-")
        style = {"ls": "-." if settings["mixer"] == "attention" else way}
        label = f"{row['name']}, at {settings['context']:,}"
        plots.line(by_context, [point["context"] for point in row["by_context"]], row["by_context"], label, **style)
        bases = [point["step"] * settings["bases_a_step"] / 1e6 for point in row["history"]]
        plots.line(over_training, bases, row["history"], label, **style)
    by_context.set(xscale="log", xlabel="bases of context given (at most)", ylabel="bits of a held-out base")
    over_training.set(xlabel="million bases trained on", ylabel="bits, at the training's context")
    over_training.set_title("black: the best Markov model", fontsize=9)
    made.legend(*by_context.get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False, fontsize=8)
    plots.save(made, path)
