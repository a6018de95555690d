"""The tables of the runs, and their JSON and plots."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from experiments.learned import plot
from experiments.shared import runs

Run = dict[str, Any]
NEAR = 0.01  # nats; the loss of cut filters that is as good as whole


def report(found: list[Run], results: Path) -> None:
    """Prints the tables and writes everything."""
    table = tables(found)
    for title, rows in table.items():
        if rows:
            print(f"\n{title}")
            _print(rows)
    what = "recall: loss and accuracy of the answer; characters and dna: held-out nats a token; reach in taps"
    runs.write(results / "results.json", what, found, table=table)
    plot.matrices(found, results / "matrices.png")
    plot.filters(found, results / "filters.png")
    plot.cuts(found, results / "cut.png")


def groups(found: list[Run]) -> dict[tuple[str, str], list[Run]]:
    """The seeds of each job and mixer."""
    made: dict[tuple[str, str], list[Run]] = {}
    for run in found:
        made.setdefault((run["settings"]["job"], run["settings"]["mixer"]), []).append(run)
    return made


def tables(found: list[Run]) -> dict[str, list[dict[str, Any]]]:
    """Rows of means over seeds with the least and the largest, by title."""
    scores, filters, cuts, looks = [], [], [], []
    for (job, mixer), seeds in groups(found).items():
        name = {"job": job, "mixer": mixer}
        results = [run["result"] for run in seeds]
        scores.append({**name, "loss": _of(r["loss"] for r in results)})
        if "accuracy" in results[0]:
            scores[-1]["accuracy"] = _of(r["accuracy"] for r in results)
        if "after" in results[0]:
            for layer in range(len(results[0]["after"]["reach_90"])):
                row: dict[str, Any] = {"job": job, "layer": layer + 1}
                for number in ("reach_90", "reach_99", "centre"):
                    for when in ("before", "after"):
                        row[f"{number} {when}"] = _of(r[when][number][layer] for r in results)
                filters.append(row)
            for i, each in enumerate(results[0]["cut"]):
                row = {"job": job, "taps": each["taps"], "loss": _of(r["cut"][i]["loss"] for r in results)}
                if "accuracy" in each:
                    row["accuracy"] = _of(r["cut"][i]["accuracy"] for r in results)
                cuts.append(row)
            cuts.append({"job": job, "taps": f"enough to {NEAR} nats", "loss": _of(enough(r) for r in results)})
        for layer in range(len(results[0].get("looks", ()))):
            for which, number in (("all channels", "looks"), ("best channel", "looks_best")):
                row = {**name, "layer": layer + 1, "which": which}
                for offset in range(len(results[0][number][layer])):
                    row[f"key+{offset}"] = _of(r[number][layer][offset] for r in results)
                looks.append(row)
    return {
        "Held-out loss": scores,
        "Filters: taps by which 90 and 99 % of the energy has come, mean frequency (0.25 is flat)": filters,
        "Loss with the trained filters cut, all layers alike": cuts,
        "How many times as much the last row looks at places after a key if it is the one asked for": looks,
    }


def enough(result: dict[str, Any]) -> int:
    """The fewest taps that were tried from which on the loss stays within NEAR of the whole filters'."""
    whole, least = result["cut"][-1]["loss"], result["cut"][-1]["taps"]
    for each in result["cut"][::-1]:
        if abs(each["loss"] - whole) > NEAR:
            break
        least = each["taps"]
    return int(least)


def _of(values: Any) -> dict[str, Any]:
    return runs.spread(list(values))


def _print(rows: list[dict[str, Any]]) -> None:
    columns = list(dict.fromkeys(name for row in rows for name in row))
    cells = [columns, *([_cell(row.get(name, "")) for name in columns] for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
    for line in cells:
        print("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)))


def _cell(value: Any) -> str:
    if not isinstance(value, dict):
        return str(value)
    if value["seeds"] == 1:
        return f"{value['mean']:.4g}"
    return f"{value['mean']:.4g} ({value['least']:.4g}-{value['largest']:.4g})"
