"""The plot of a GPU's record."""

from __future__ import annotations

import json
from pathlib import Path


def plot(path: Path, to: Path) -> None:
    """Draws the record: each panel a section, value by length, bars dashed."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    sections = json.loads(path.read_text())["sections"]
    panels = [n for n in ("bandwidth", "flash_fft_conv", "attention", "against_fallback") if n in sections]
    figure, axes = plt.subplots(1, max(1, len(panels)), figsize=(5.5 * max(1, len(panels)), 4.5), squeeze=False)
    for axis, name in zip(axes[0], panels):
        lines: dict[str, list[tuple[int, float, float | None]]] = {}
        for r in sections[name]["rows"]:
            if r["value"] is not None:
                label, length = r["what"].rsplit(" L=", 1)
                lines.setdefault(label, []).append((int(length), r["value"], r["bar"]))
        for label, points in lines.items():
            (line,) = axis.plot([p[0] for p in points], [p[1] for p in points], marker="o", ms=3, label=label)
            bars = [(p[0], p[2]) for p in points if p[2] is not None]
            if bars:
                axis.plot(*zip(*bars), ls="--", lw=0.8, color=line.get_color())
        unit = sections[name]["rows"][0]["unit"]
        axis.set(title=name.replace("_", " "), xlabel="length", ylabel=unit, xscale="log")
        axis.set_xscale("log", base=2)
        if name != "bandwidth":
            axis.set_yscale("log")
        axis.grid(alpha=0.3)
        axis.legend(fontsize=6)
    if panels:
        figure.suptitle(sections[panels[0]]["machine"]["device"])
    figure.tight_layout()
    figure.savefig(to, dpi=110)
