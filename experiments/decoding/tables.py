"""The tables of the experiment: loss against modes, and what a token costs."""

from __future__ import annotations

from typing import Any

from experiments.shared.runs import spread

Run = dict[str, Any]

WAYS = {
    "exact": "Hyena, exact steps",
    "distilled": "Hyena, distilled",
    "rerun": "Hyena, whole context again",
    "h3": "H3, by recurrences",
    "attention": "attention with cache",
}


def distilled(found: list[Run]) -> list[dict[str, Any]]:
    """A row for each number of modes, over seeds; first the models as they were trained, with modes None."""
    runs = [run["result"] for run in found if run["settings"]["part"] == "distill"]
    if not runs:
        return []
    rows: list[dict[str, Any]] = [{"modes": None, "loss": spread(run["loss"] for run in runs)}]
    for i, modes in enumerate(row["modes"] for row in runs[0]["distilled"]):
        each = [run["distilled"][i] for run in runs]
        rows.append(
            {
                "modes": modes,
                "mean_error": spread(row["mean_error"] for row in each),
                "largest_error": spread(row["largest_error"] for row in each),
                "loss": spread(row["loss"] for row in each),
                "over_exact": spread(row["loss"] - run["loss"] for row, run in zip(each, runs)),
            }
        )
    return rows


def speeds(found: list[Run]) -> list[dict[str, Any]]:
    """A row for each batch and context: milliseconds a token, and how many times as fast the first two ways are."""
    rows = []
    for run in found:
        if run["settings"]["part"] == "speed":
            ms = run["result"]
            rows.append(
                {
                    "batch": run["settings"]["batch"],
                    "context": run["settings"]["context"],
                    "milliseconds": {way: ms[way] for way in WAYS},
                    "times_as_fast": {
                        way: {than: ms[than] / ms[way] for than in WAYS if than != way}
                        for way in ("exact", "distilled")
                    },
                }
            )
    return rows


def lines(tables: dict[str, Any]) -> list[str]:
    """Both tables in text."""
    printed = []
    if tables["distilled"]:
        printed.append(
            f"{'modes':>8} {'filter error, mean':>19} {'largest':>8} {'loss':>8}  over exact (least to largest)"
        )
    for row in tables["distilled"]:
        if row["modes"] is None:
            printed.append(f"{'exact':>8} {'':>19} {'':>8} {row['loss']['mean']:>8.4f}")
        else:
            over = row["over_exact"]
            printed.append(
                f"{row['modes']:>8} {row['mean_error']['mean']:>19.4f} {row['largest_error']['largest']:>8.3f} "
                f"{row['loss']['mean']:>8.4f}  {over['mean']:+.4f} ({over['least']:+.4f} to {over['largest']:+.4f})"
            )
    if tables["speeds"]:
        printed.append(f"{'batch':>8} {'context':>8}  times as fast: exact steps / distilled, as")
        printed.append(f"{'':>17}  {'rerun':>15} {'attention':>15} {'H3':>15}  distilled as exact")
    for row in tables["speeds"]:
        exact, small = (row["times_as_fast"][way] for way in ("exact", "distilled"))
        ratios = " ".join(f"{f'{exact[than]:.2f} / {small[than]:.2f}':>15}" for than in ("rerun", "attention", "h3"))
        printed.append(f"{row['batch']:>8} {row['context']:>8}  {ratios}  {small['exact']:>18.2f}")
    return printed
