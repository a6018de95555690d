"""Associative recall (arXiv 2302.10866, section 4.1): Hyena beside attention, other operators and other filters.

    python -m experiments.recall --workers 2                     # about twenty hours of a core
    python -m experiments.recall --full --device cuda            # the published lengths, to 131072

Pairs of keys and values, then a key: what was its value? 2000 examples; the loss is over the whole sequence, what
counts is the last token of examples that were not trained on. Published: Hyena and attention solve it, very long rows
Hyena alone; H3, AFT and explicit convolutions fall behind as keys get more.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from experiments.recall.grids import grid
from experiments.recall.report import report
from experiments.recall.tasks import associative_recall
from experiments.shared import runs
from experiments.shared.examples import accuracy, epochs, last_only, loss, steps_of_epoch
from experiments.shared.models import language_model, parameters
from experiments.shared.training import Schedule, generator, train

HERE = Path(__file__).resolve().parent
SOLVED = 0.995  # of the examples that are watched; a run stops there
LOOK_EVERY = 2  # epochs
WATCHED, TESTED = 256, 1000
CHECKPOINT_FROM = 32768  # positions in a row from which blocks are computed again in the backward pass


def work(settings: runs.Settings, place: runs.Place) -> dict[str, Any]:
    """Trains one model on one vocabulary and length."""
    seed, length, vocabulary, batch = (settings[k] for k in ("seed", "length", "vocabulary", "batch"))

    def examples(count: int, which: int) -> tuple[torch.Tensor, torch.Tensor]:
        made = associative_recall(count, length, vocabulary, generator(seed, -1 - which))
        return made[0].to(place.device), made[1].to(place.device)

    tokens, targets = examples(settings["examples"], 0)
    watched, watched_targets = examples(WATCHED, 1)
    torch.manual_seed(seed)
    model = language_model(
        settings["model"],
        vocabulary,
        length,
        width=settings["width"],
        layers=settings["layers"],
        d_inner=settings["d_inner"],
        gradient_checkpointing=length >= CHECKPOINT_FROM,
    ).to(place.device)
    each = steps_of_epoch(settings["examples"], batch)
    chosen = epochs(tokens, targets, batch, seed)
    at_once = max(1, min(64, 2**19 // length))
    history = train(
        model,
        lambda step: loss(model, *chosen(step)),
        Schedule(settings["epochs"] * each, settings["lr"], settings["weight_decay"], warmup=settings["warmup"] * each),
        place,
        evaluate=lambda: {"accuracy": accuracy(model, watched, last_only(watched_targets), at_once)["accuracy"]},
        evaluate_every=LOOK_EVERY * each,
        until=lambda found: found["accuracy"] >= SOLVED,
    )
    # Other examples than those that said when to stop.
    tested, tested_targets = examples(TESTED, 2)
    return {
        "accuracy": accuracy(model, tested, last_only(tested_targets), at_once)["accuracy"],
        "epochs": history[-1]["step"] / each,
        "parameters": parameters(model),
        "history": history,
    }


if __name__ == "__main__":
    runs.command(__doc__, here=HERE, grid=grid, work=work, report=report)
