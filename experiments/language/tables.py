"""The tables of the experiment: final losses, and the same curves read at equal operations and at equal time."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from experiments.language.models import WORDS
from experiments.shared.runs import spread

Run = dict[str, Any]


def table(found: list[Run], text: str) -> dict[str, Any]:
    """What the runs on one text say, by model and by n-gram.

    Losses "at equal operations" and "at equal time" are those that each model had on its way when it had spent what the
    cheapest of them spends on all its steps; time is steps times the seconds of a step, measured with the models taking
    turns. They are of a sample of the test part, moved by what that differs from the whole at the end.
    """
    here = [run for run in found if run["settings"]["text"] == text]
    trained: dict[str, list[Run]] = {}
    for run in here:
        if run["settings"]["part"] == "train":
            trained.setdefault(run["settings"]["model"], []).append(run)
    timed = next((run["result"]["seconds_a_step"] for run in here if run["settings"]["part"] == "speed"), None)
    counted = next((run["result"]["orders"] for run in here if run["settings"]["part"] == "n-grams"), {})
    rows: dict[str, Any] = {}
    flops = {model: runs[0]["result"]["flops"] for model, runs in trained.items()}
    seconds = {m: timed[m] * runs[0]["settings"]["steps"] for m, runs in trained.items()} if timed else {}
    for model, runs in trained.items():
        rows[model] = {
            "parameters": runs[0]["result"]["parameters"],
            "flops": flops[model],
            **{
                name: spread(run["result"][name] for run in runs)
                for name in ("loss", "bits_a_byte", "word_perplexity")
                if name in runs[0]["result"]
            },
            "loss_at_equal_flops": spread(loss_at(run, min(flops.values()) / flops[model]) for run in runs),
        }
        if timed:
            rows[model]["seconds_a_step"] = timed[model]
            shares = min(seconds.values()) / seconds[model]
            rows[model]["loss_at_equal_time"] = spread(loss_at(run, shares) for run in runs)
    return {"text": text, "models": rows, "n_grams": counted}


def loss_at(run: Run, share: float) -> float:
    """The loss of a run after a share of its steps, between the evaluations on its way."""
    history = run["result"]["history"]
    step = share * history[-1]["step"]
    moved = run["result"]["loss"] - history[-1]["loss"]
    if step <= history[0]["step"]:
        return history[0]["loss"] + moved
    for before, after in pairwise(history):
        if step <= after["step"]:
            part = (step - before["step"]) / (after["step"] - before["step"])
            return before["loss"] + part * (after["loss"] - before["loss"]) + moved
    return run["result"]["loss"]


def lines(found: dict[str, Any]) -> list[str]:
    """A table in text."""
    words = any("word_perplexity" in row for row in (*found["models"].values(), *found["n_grams"].values()))
    head = f"{'parameters':>10} {'loss (least to largest)':>25} {'bits a byte':>11}"
    head += f" {'word ppl':>8}" * words + f" {'10^12 ops':>9} {'step':>6} {'= ops':>6} {'= time':>6}"
    printed = [f"{found['text']:<30}{head}"]
    first = next(iter(found["models"].values()), None)
    for model, row in found["models"].items():
        loss = row["loss"]
        line = f"{row['parameters']:>10,} {loss['mean']:>9.4f} ({loss['least']:.3f} to {loss['largest']:.3f})"
        line += f" {row['bits_a_byte']['mean']:>11.4f}"
        if words:
            line += f" {row['word_perplexity']['mean']:>8.1f}"
        line += f" {row['flops'] / 1e12:>9.3g}"
        if "seconds_a_step" in row and first is not None:
            line += f" {row['seconds_a_step'] / first['seconds_a_step']:>6.2f}"
        else:
            line += f" {'-':>6}"
        line += f" {row['loss_at_equal_flops']['mean']:>6.3f}"
        line += f" {row['loss_at_equal_time']['mean']:>6.3f}" if "loss_at_equal_time" in row else f" {'-':>6}"
        printed.append(f"{WORDS[model]:<30}{line}")
    for order, row in found["n_grams"].items():
        line = f"{'-':>10} {row['loss']:>9.4f} {'':>15} {row['bits_a_byte']:>11.4f}"
        printed.append(f"{order + '-gram':<30}{line}" + (f" {row['word_perplexity']:>8.1f}" if words else ""))
    return printed
