"""The plot of runtimes: a row a machine, forward, training and peak memory by length."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from experiments.shared import plots

LOOKS = {"hyena": "C0", "attention": "C1", "flash": "C1", "default": "C2"}
WORDS = {"hyena": "Hyena", "attention": "attention", "flash": "attention, flash", "default": "attention, default"}


def draw(machines: list[dict[str, Any]], path: Path) -> None:
    """Draws the curves, with a line where Hyena begins to be the faster one."""
    made, panels = plots.figure(3, len(machines), size=(4.8, 3.8))
    for row, machine in enumerate(machines):
        for panel, mode in zip(panels[3 * row :], ("forward", "training"), strict=False):
            for layer, curve in machine["seconds"][mode].items():
                lengths = list(curve)
                rows = [{k: v if k == "seeds" else 1e3 * v for k, v in curve[n].items()} for n in lengths]
                plots.line(panel, lengths, rows, WORDS[layer], color=LOOKS[layer])
            for name, at in machine["crossover"].items():
                if name.startswith(mode) and at:
                    rival = name.partition(", ")[2]
                    label = f"Hyena faster from {at}"
                    panel.axvline(at, color=LOOKS[rival], ls=":", lw=1.2, label=label)
            panel.set(title=f"{machine['name']}\n{mode}, {machine['dtype']}, width {machine['width']}", ylabel="ms")
            panel.title.set_fontsize(9)
            _finish(panel)
        memory = panels[3 * row + 2]
        for mode, style in (("forward", "--"), ("training", "-")):
            for layer, curve in machine["bytes"][mode].items():
                points = [(n, count / 1e6) for n, count in curve.items() if count]
                if points:
                    label = f"{WORDS[layer]}, {mode}"
                    memory.plot(*zip(*points, strict=True), style, marker=".", color=LOOKS[layer], label=label)
        memory.set(title="peak memory beyond the inputs", ylabel="MB")
        memory.title.set_fontsize(9)
        if memory.lines:
            _finish(memory)
        else:
            memory.set_axis_off()
            memory.set_title("")
    plots.save(made, path)


def _finish(panel: Any) -> None:
    panel.set_xscale("log", base=2)
    plots.log_scale(panel)
    panel.set_xlabel("length")
    if panel.get_legend_handles_labels()[0]:
        panel.legend(fontsize=7)
