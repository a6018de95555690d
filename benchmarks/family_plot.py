"""The plot of the family's costs, which family.py and family_mixers.py share."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def draw(record: dict[str, Any], path: Path, kind: str, shown: list[str], against: str) -> None:
    """Draws columns of a record against the length, a line for each of a kind; what was not measured is left out.

    Args:
        record: with ``rows``, which have ``L``, the name under ``kind`` and the columns.
        path: of the picture.
        kind: ``"filter"`` or ``"mixer"``.
        shown: the columns, a panel each.
        against: what the length counts.
    """
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(shown), figsize=(5 * len(shown), 5))
    for axis, column in zip(axes, shown, strict=True):
        for i, name in enumerate(dict.fromkeys(row[kind] for row in record["rows"])):
            rows = [row for row in record["rows"] if row[kind] == name and row[column]]
            style = {"marker": "os^vD"[i % 5], "linestyle": "-" if i < 10 else "--"}
            axis.plot([row["L"] for row in rows], [row[column] for row in rows], label=name, **style)
        axis.set(xscale="log", yscale="log", xlabel=against, title=column)
    axes[-1].legend(fontsize="small")
    figure.tight_layout()
    figure.savefig(path, dpi=100)
