"""The table, the JSON and the plot of recall, with what was published beside them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from experiments.recall.tasks import chance
from experiments.shared import plots, runs

# Per cent, table C.1 of arXiv 2302.10866, L = 2048, by vocabulary.
PUBLISHED = {
    "hyena": {10: 100, 20: 100, 30: 98, 40: 85},
    "attention": {10: 100, 20: 100, 30: 92, 40: 82},
    "h3": {10: 92, 20: 60, 30: 13, 40: 10},
    "aft-conv": {10: 55, 20: 21, 30: 12, 40: 10},
    "hyena/conv1d": {10: 32, 20: 11, 30: 10, 40: 8},
}
WHAT = "share of right last tokens of 1000 examples that were neither trained on nor looked at to stop"


def report(found: list[dict[str, Any]], results: Path) -> None:
    """Prints the table, and writes JSON and plot."""
    table = rows(found)
    print(
        f"{'model':<15} {'vocabulary':>10} {'length':>7} {'chance':>7}  {'accuracy (least, largest)':<27} {'epochs':>6}"
    )
    for row in table:
        settings, right = row["settings"], row["accuracy"]
        spread = f"{right['mean']:.1%} ({right['least']:.1%}, {right['largest']:.1%})"
        print(
            f"{settings['model']:<15} {settings['vocabulary']:>10} {settings['length']:>7} "
            f"{chance(settings['vocabulary']):>7.1%}  {spread:<27} {row['epochs']['mean']:>6.1f}  "
            f"{right['seeds']} seeds"
        )
    published = {"table C.1, length 2048, per cent": PUBLISHED}
    written = runs.write(results / "results.json", WHAT, found, table=table, published=published)
    print(f"results  {results / 'results.json'}")
    draw(written, results / "results.png")


def rows(found: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row for each setting: the spread over seeds of the accuracy and of the epochs that it took."""
    found = list(found)
    right, took = runs.by_seed(found, "accuracy"), runs.by_seed(found, "epochs")
    keys = ("mean", "least", "largest", "seeds")
    return [
        {"settings": a["settings"], "accuracy": {k: a[k] for k in keys}, "epochs": {k: e[k] for k in keys}}
        for a, e in zip(right, took, strict=True)
    ]


def draw(written: dict[str, Any], path: Path) -> None:
    """Draws accuracy by vocabulary, what was published, accuracy by length, and how fast the largest was learned."""
    table = written["table"]
    colours = {m: f"C{i % 10}" for i, m in enumerate(dict.fromkeys(row["settings"]["model"] for row in table))}
    figure, (ours, published, lengths, learning) = plots.figure(4, size=(4.6, 4.2))
    length = _most(row["settings"]["length"] for row in table)
    vocabulary = _most(row["settings"]["vocabulary"] for row in table if row["settings"]["length"] == length)
    tried = {(row["settings"]["length"], row["settings"]["vocabulary"]) for row in table}
    # The hardest of which there is a line to draw, if there is any.
    of_lengths = max((v for _, v in tried if sum(v == w for _, w in tried) > 2), default=_most(v for _, v in tried))
    longer = max((n for n, _ in tried if n > length and sum(n == m for m, _ in tried) > 2), default=None)
    for model, colour in colours.items():
        mine = [row for row in table if row["settings"]["model"] == model]
        by_vocabulary = [row for row in mine if row["settings"]["length"] == length]
        by_length = [row for row in mine if row["settings"]["vocabulary"] == of_lengths]
        _line(ours, by_vocabulary, "vocabulary", model, colour)
        if longer is not None:
            in_longer = [row for row in mine if row["settings"]["length"] == longer]
            _line(ours, in_longer, "vocabulary", None, colour, ls="--")
        _line(lengths, by_length, "length", model, colour)
        if model in PUBLISHED:
            there = PUBLISHED[model]
            published.plot(list(there), [value / 100 for value in there.values()], "o-", ms=4, color=colour)
    for run in written["runs"]:
        settings = run["settings"]
        if (settings["length"], settings["vocabulary"]) == (length, vocabulary):
            each = run["result"]["history"][-1]["step"] / run["result"]["epochs"]
            at = [row["step"] / each for row in run["result"]["history"]]
            right = [row["accuracy"] for row in run["result"]["history"]]
            learning.plot(at, right, color=colours[settings["model"]], lw=1)
    dashed = "" if longer is None else f", dashed {longer}"
    ours.set(title=f"length {length}{dashed}", xlabel="vocabulary", ylabel="accuracy")
    published.set(title="published, length 2048", xlabel="vocabulary")
    lengths.set(title=f"vocabulary {of_lengths}", xlabel="length")
    lengths.set_xscale("log", base=2)
    lengths.xaxis.set_major_formatter("{x:g}")
    learning.set(title=f"vocabulary {vocabulary}, length {length}; every seed", xlabel="epoch")
    guess = {v: chance(v) for v in sorted({row["settings"]["vocabulary"] for row in table} | {10, 20, 30, 40})}
    for panel in (ours, published):
        panel.plot(list(guess), list(guess.values()), "k:", lw=1)
    for panel in (ours, published, lengths, learning):
        panel.set_ylim(-0.03, 1.03)
    figure.legend(*ours.get_legend_handles_labels(), loc="outside lower center", ncols=6, frameon=False)
    plots.save(figure, path)


def _line(panel: Any, mine: list[dict[str, Any]], by: str, label: str | None, colour: str, **style: Any) -> None:
    """Means over seeds by a setting, with the band of the seeds."""
    mine = sorted(mine, key=lambda row: row["settings"][by])
    plots.line(
        panel, [row["settings"][by] for row in mine], [row["accuracy"] for row in mine], label, color=colour, **style
    )


def _most(values: Iterable[int]) -> int:
    """The value that comes most often, the smaller of several."""
    values = sorted(values)
    return max(values, key=values.count)
