"""The plot of the family's costs: a row for each filter or mixer, a dot for each length."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def draw(record: dict[str, Any], path: Path, kind: str, panels: dict[str, str]) -> None:
    """Draws columns of a record; what was not measured is left out.

    Args:
        record: with ``rows``, which have ``L``, a name under ``kind`` and the columns.
        path: of the picture.
        kind: ``"filter"`` or ``"mixer"``.
        panels: columns, a panel each, and their titles; those that are ratios have a line at 1.
    """
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt
    import matplotlib.ticker

    rows = record["rows"]
    names, lengths = list(dict.fromkeys(row[kind] for row in rows)), sorted({row["L"] for row in rows})
    shades = [mpl.colormaps["viridis"](0.9 - 0.8 * i / max(1, len(lengths) - 1)) for i in range(len(lengths))]
    size = (2.0 + 2.6 * len(panels), 1.4 + 0.3 * len(names))
    figure, grid = plt.subplots(1, len(panels), figsize=size, sharey=True, squeeze=False, layout="constrained")
    for axis, (column, title) in zip(grid[0], panels.items(), strict=True):
        if "/ Hyena" in column:
            axis.axvline(1, color="0.6", linewidth=1, zorder=0)
        for y, name in enumerate(names):
            shown = [(row[column], lengths.index(row["L"])) for row in rows if row[kind] == name and row[column]]
            axis.plot([value for value, _ in shown], [y] * len(shown), color="0.8", linewidth=2, zorder=1)
            for value, i in shown:
                axis.scatter(value, y, color=shades[i], s=30, zorder=2)
        axis.set(xscale="log", title=title)
        # Some panels span less than a decade, others five.
        low, high = axis.get_xlim()
        steps = (1.0, 2.0, 5.0) if high < 100 * low else (1.0,)
        axis.xaxis.set_major_locator(mpl.ticker.LogLocator(subs=steps, numticks=12))
        axis.xaxis.set_major_formatter(mpl.ticker.StrMethodFormatter("{x:g}"))
        axis.xaxis.set_minor_formatter(mpl.ticker.NullFormatter())
        axis.grid(axis="x", color="0.9", zorder=-1)
    grid[0, 0].set_yticks(range(len(names)), names)
    grid[0, 0].invert_yaxis()
    dots = [plt.Line2D([], [], color=shade, marker="o", linestyle="") for shade in shades]
    title = f"{record['device']}, {record['threads']} threads, {record['dtype']}; length:"
    figure.legend(dots, [f"{length:,}" for length in lengths], title=title, loc="outside lower center", ncols=6)
    figure.savefig(path, dpi=100)
    plt.close(figure)
