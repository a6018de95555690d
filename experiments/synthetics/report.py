"""The table, the JSON and the plot of the synthetic tasks."""

from __future__ import annotations

from collections.abc import Iterable
from operator import itemgetter
from pathlib import Path
from typing import Any

from experiments.shared import plots, runs

WHAT = (
    "score: the share of right answers on 1000 examples that were neither trained on nor looked at to stop (addition: "
    "all digits right); linear functions: mean squared error at the last point, 1 for who always says zero"
)
SIMPLE = ("majority", "counting", "induction")


def report(found: list[dict[str, Any]], results: Path) -> None:
    """Prints the table, and writes JSON and plot."""
    table = rows(found)
    head = f"{'task':<19} {'model':<10} {'layers':>6} {'width':>5}  {'score (least, largest)':<24} {'guessing':>8}"
    print(f"{head}  options")
    for row in table:
        settings, score = row["settings"], row["score"]
        spread = f"{score['mean']:.3f} ({score['least']:.3f}, {score['largest']:.3f})"
        options = ", ".join(f"{name} {value}" for name, value in settings["options"].items())
        print(
            f"{settings['task']:<19} {settings['model']:<10} {settings['layers']:>6} {settings['width']:>5}  "
            f"{spread:<24} {guess(settings):>8.3f}  {options}; {score['seeds']} seeds"
        )
    written = runs.write(results / "results.json", WHAT, found, table=table)
    print(f"results  {results / 'results.json'}")
    draw(written, results / "results.png")


def rows(found: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row for each setting: the spread over seeds of the score and of the steps that it took."""
    found = list(found)
    keys = ("mean", "least", "largest", "seeds")
    pairs = zip(runs.by_seed(found, "score"), runs.by_seed(found, "steps"), strict=True)
    return [
        {"settings": a["settings"], "score": {k: a[k] for k in keys}, "steps": {k: b[k] for k in keys}}
        for a, b in pairs
    ]


def guess(settings: dict[str, Any]) -> float:
    """The score of who knows the task's answers but not which: for multi-query recall, the values of the row."""
    options = settings["options"]
    return {
        "majority": lambda: 1 / options["letters"],
        "counting": lambda: 1 / options["most"],
        "induction": lambda: 1 / options["letters"],
        "addition": lambda: 10.0 ** -options["digits"],
        "multi-query recall": lambda: 1 / options["pairs"],
        "linear functions": lambda: 1.0,
    }[settings["task"]]()


def draw(written: dict[str, Any], path: Path) -> None:
    """Draws a panel for the simple tasks, and one for each of the others."""
    table = written["table"]
    figure, (simple, addition, linear, recall) = plots.figure(4, size=(4.6, 4.0))
    models = list(dict.fromkeys(row["settings"]["model"] for row in table))
    colours = {model: f"C{i % 10}" for i, model in enumerate(models)}
    names = list(dict.fromkeys(_name(row) for row in table if row["settings"]["task"] in SIMPLE))
    for model in models:
        mine = [row for row in table if row["settings"]["model"] == model]
        bars = [row for row in mine if row["settings"]["task"] in SIMPLE]
        at = [names.index(_name(row)) + 0.2 * (models.index(model) - 1) for row in bars]
        means = [row["score"]["mean"] for row in bars]
        around = [[row["score"]["mean"] - row["score"]["least"] for row in bars]]
        around.append([row["score"]["largest"] - row["score"]["mean"] for row in bars])
        simple.errorbar(at, means, around, fmt="o", capsize=3, color=colours[model], label=model)
        _lines(addition, mine, "addition", "digits", "layers", model, colours[model])
        _lines(recall, mine, "multi-query recall", "width", "pairs", model, colours[model])
    _draw_functions(linear, [run for run in written["runs"] if run["settings"]["task"] == "linear functions"], colours)
    simple.set_xticks(range(len(names)), names)
    simple.set(title="majority, counting, induction", ylabel="accuracy")
    addition.set(title="addition", xlabel="digits", ylabel="sums that are right")
    linear.set(title="linear functions", xlabel="pairs shown", ylabel="squared error")
    recall.set(title="multi-query recall", xlabel="width", ylabel="accuracy")
    recall.set_xscale("log", base=2)
    recall.xaxis.set_major_formatter("{x:g}")
    addition.set_xticks(sorted({row["settings"]["options"].get("digits", 2) for row in table}))
    for panel in (simple, addition, recall):
        panel.set_ylim(-0.03, 1.03)
    for panel in (simple, addition, linear, recall):
        if panel.get_legend_handles_labels()[1]:
            panel.legend(fontsize=8)
    plots.save(figure, path)


def _name(row: dict[str, Any]) -> str:
    settings = row["settings"]
    return f"{settings['task']}\nlength {settings['options']['length']}"


def _lines(panel: Any, mine: list[dict[str, Any]], task: str, by: str, style: str, model: str, colour: str) -> None:
    """Scores of a task by one of its settings or options, a line for each value of another."""
    mine = [row for row in mine if row["settings"]["task"] == task]
    of = [{**row["settings"], **row["settings"]["options"]} for row in mine]
    values = sorted({each[style] for each in of})
    for value, dashes in zip(values, ("-", "--", ":", "-.")):
        some = sorted(
            ((each[by], row["score"]) for each, row in zip(of, mine) if each[style] == value), key=itemgetter(0)
        )
        label = f"{model}, {style} {value}"
        plots.line(panel, [at for at, _ in some], [score for _, score in some], label, color=colour, ls=dashes)


def _draw_functions(panel: Any, found: list[dict[str, Any]], colours: dict[str, str]) -> None:
    """Squared errors by the pairs shown, a line a run, of the smallest dimension, beside those of least squares."""
    if not found:
        return
    least = min(run["settings"]["options"]["dimension"] for run in found)
    found = [run for run in found if run["settings"]["options"]["dimension"] == least]
    labelled: set[str] = set()
    for run in found:
        model, errors = run["settings"]["model"], run["result"]["errors"]
        label = None if model in labelled else model
        panel.plot(range(len(errors)), errors, lw=1, color=colours[model], label=label)
        labelled.add(model)
    squares = found[0]["result"]["least_squares"]
    panel.plot(range(len(squares)), squares, "k:", lw=1, label="least squares")
