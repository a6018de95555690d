"""The plot of the conversions: validation losses, and errors of the layers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

# The starts that are compared, and their colours.
STARTS = {"converted": ("attention", "C0"), "filters": ("filters alone", "C1"), "random": ("random", "C2")}


def draw(found: dict[str, Any], path: Path) -> None:
    """Draws ``results.json`` into a PNG."""
    figure = Figure(figsize=(12, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, width_ratios=(1.2, 1))
    names = [name for name in found["words"] if name in found["validation_loss"]]
    for i, name in enumerate(names[::-1]):
        loss = found["validation_loss"][name]
        left.plot([loss["mean"]] * 2, [i - 0.3, i + 0.3], "k", lw=2)
        left.plot(list(loss["seeds"].values()), [i] * len(loss["seeds"]), "o", color="C0", alpha=0.7)
        left.annotate(f"{loss['mean']:.3f}", (loss["largest"], i), xytext=(8, -4), textcoords="offset points")
    teacher = found["validation_loss"]["attention"]["mean"]
    left.axvspan(teacher, teacher + 0.05, alpha=0.15, label="attention to attention + 0.05")
    left.set_yticks(range(len(names)), [found["words"][name] for name in names[::-1]])
    left.set(
        xlabel="validation loss (nats a character); dots: seeds", title="Shakespeare, a fifth of attention's tokens"
    )
    left.margins(x=0.15)
    left.grid(alpha=0.3, axis="x")
    left.legend(loc="upper center", bbox_to_anchor=(0.5, -0.14), frameon=False)
    for name, (start, colour) in STARTS.items():
        for n, runs in enumerate(found["seeds"].values()):
            if name not in runs:
                continue
            layers = [layer for layer in runs[name]["report"]["layers"] if layer["error_after"] is not None]
            at = [layer["index"] for layer in layers]
            right.plot(at, [layer["error_before"] for layer in layers], ":o", color=colour, ms=3, alpha=0.5)
            label = f"start: {start}" if n == 0 else None
            right.plot(at, [layer["error_after"] for layer in layers], "-o", color=colour, ms=4, alpha=0.8, label=label)
    right.set(
        yscale="log",
        xlabel="layer",
        ylabel="relative squared error",
        title="Layers: start (dotted), taught",
    )
    right.set_xticks(sorted({layer["index"] for layer in _layers(found)}))
    right.grid(alpha=0.3, which="both")
    right.legend()
    figure.savefig(path, dpi=110)


def _layers(found: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        layer
        for runs in found["seeds"].values()
        if "converted" in runs
        for layer in runs["converted"]["report"]["layers"]
    ]
