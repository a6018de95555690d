"""Synthetic tasks beside associative recall: what does Hyena learn as attention does, and what not?

    python -m experiments.synthetics --workers 2                     # about an hour of a core
    python -m experiments.synthetics --only "task=multi-query recall"
    python -m experiments.synthetics --full --device cuda            # the published lengths, digits and widths

Majority, counting, addition and linear functions as arXiv 2302.10866 has them, the induction head of its code, and
the multi-query recall of Zoology (arXiv 2312.04927), where Hyena is known to need more width than attention.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from experiments.shared import runs
from experiments.shared.examples import accuracy, epochs, loss
from experiments.shared.models import language_model, parameters
from experiments.shared.training import Schedule, generator, train
from experiments.synthetics import tasks
from experiments.synthetics.grids import grid
from experiments.synthetics.models import Regressor
from experiments.synthetics.report import report

HERE = Path(__file__).resolve().parent
SOLVED = 0.995  # of the examples that are watched; a run stops there
LOOKS = 10  # evaluations in a run
WATCHED, TESTED = 512, 1000
TASKS = {
    "majority": tasks.majority,
    "counting": tasks.counting,
    "induction": tasks.induction,
    "addition": tasks.addition,
    "multi-query recall": tasks.multi_query_recall,
}


def work(settings: runs.Settings, place: runs.Place) -> dict[str, Any]:
    """Trains one model on one task; the score is the share of right answers, or for functions the squared error."""
    return functions(settings, place) if settings["task"] == "linear functions" else tokens(settings, place)


def tokens(settings: runs.Settings, place: runs.Place) -> dict[str, Any]:
    """A task of tokens. Of addition an example is right if all its digits are."""
    make, seed, device = TASKS[settings["task"]], settings["seed"], place.device
    trained, watched, tested = (
        make(count, generator(seed, -1 - i), **settings["options"])
        for i, count in enumerate((settings["examples"], WATCHED, TESTED))
    )
    torch.manual_seed(seed)
    sizes = {name: settings[name] for name in ("width", "layers", "d_inner")}
    length = trained.tokens.size(1)
    model = language_model(settings["model"], trained.vocabulary, length, **sizes).to(device)
    chosen = epochs(trained.tokens.to(device), trained.targets.to(device), settings["batch"], seed)
    score = "whole" if settings["task"] == "addition" else "accuracy"

    def right(some: tasks.Examples) -> dict[str, float]:
        found = accuracy(model, some.tokens.to(device), some.scored.to(device), max(1, min(256, 2**16 // length)))
        return {"score": found[score], "accuracy": found["accuracy"]}

    history = train(
        model,
        lambda step: loss(model, *chosen(step)),
        schedule(settings),
        place,
        evaluate=lambda: right(watched),
        evaluate_every=settings["steps"] // LOOKS,
        until=lambda found: found["score"] >= SOLVED,
    )
    # Other examples than those that said when to stop.
    return {**right(tested), "steps": history[-1]["step"], "parameters": parameters(model), "history": history}


def functions(settings: runs.Settings, place: runs.Place) -> dict[str, Any]:
    """Linear functions; the score is the mean squared error at the last point, 1 for who always says zero."""
    seed, device, options = settings["seed"], place.device, settings["options"]
    (trained, values), (watched, wanted), (tested, truth) = (
        (part.to(device) for part in tasks.linear_functions(count, generator(seed, -1 - i), **options))
        for i, count in enumerate((settings["examples"], WATCHED, TESTED))
    )
    torch.manual_seed(seed)
    sizes = {name: settings[name] for name in ("width", "layers", "d_inner")}
    model = Regressor(settings["model"], options["dimension"] + 1, trained.size(1), **sizes).to(device)
    chosen = epochs(trained, values, settings["batch"], seed)

    def error(step: int) -> torch.Tensor:
        inputs, targets = chosen(step)
        return (model(inputs)[:, 0::2] - targets).square().mean()

    def errors(inputs: torch.Tensor, targets: torch.Tensor) -> list[float]:
        return (model(inputs)[:, 0::2] - targets).square().mean(0).tolist()

    history = train(
        model,
        error,
        schedule(settings),
        place,
        evaluate=lambda: {"score": errors(watched, wanted)[-1]},
        evaluate_every=settings["steps"] // LOOKS,
    )
    with torch.no_grad():
        by_pairs = errors(tested, truth)
    return {
        "score": by_pairs[-1],
        "steps": history[-1]["step"],
        "parameters": parameters(model),
        "errors": by_pairs,
        "least_squares": tasks.least_squares(tested, truth).square().mean(0).tolist(),
        "history": history,
    }


def schedule(settings: runs.Settings) -> Schedule:
    """A rise over a twentieth of the steps, then a cosine."""
    steps = settings["steps"]
    return Schedule(steps, settings["lr"], settings["weight_decay"], warmup=steps // 20)


if __name__ == "__main__":
    runs.command(__doc__, here=HERE, grid=grid, work=work, report=report)
