"""An experiment for the tests of experiments/shared: a small model, trained; it can be told when to end.

Environment: ``END=HOW:SIZE:STEP`` ends the run of that size before that step: ``kill`` kills the process, ``parent``
the one that started it, ``fail`` raises. ``PROCESS`` is a file that the process leaves its number in before it kills,
and does not kill if it is there. ``LR`` is the learning rate.
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import torch
from experiments.shared import runs, training

STEPS, EVERY = 12, 4


def grid(size: str, seeds: list[int]) -> list[runs.Settings]:
    return [{"size": width, "seed": seed} for width in (3, 5) for seed in seeds]


def work(settings: runs.Settings, place: runs.Place) -> dict[str, Any]:
    width, seed = settings["size"], settings["seed"]
    training.SAVE_EVERY = 0.0  # after every step
    torch.manual_seed(seed)
    # Dropout draws from the global random numbers, which a run that goes on must have again.
    model = torch.nn.Sequential(torch.nn.Linear(4, width), torch.nn.Dropout(0.3), torch.nn.Linear(width, 1))

    def loss(step: int) -> torch.Tensor:
        interrupt(width, step)
        x = torch.randn(8, 4, generator=training.generator(seed, step))
        return (model(x) - x.sum(1, keepdim=True)).square().mean()

    schedule = training.Schedule(STEPS, float(os.environ.get("LR", "0.05")), warmup=2, floor=0.1)
    evaluate = {"evaluate": lambda: {"bias": model[2].bias.item()}, "evaluate_every": EVERY}
    history = training.train(model, loss, schedule, place, **evaluate)
    weights = {name: t.flatten().tolist() for name, t in model.state_dict().items()}
    return {"last": history[-1]["training_loss"], "weights": weights, "history": history}


def interrupt(width: int, step: int) -> None:
    how, _, when = os.environ.get("END", "").partition(":")
    if when != f"{width}:{step}":
        return
    if how == "fail":
        raise ArithmeticError(f"size {width} fails")
    done = Path(os.environ["PROCESS"])
    if done.exists():
        return
    done.write_text(str(os.getpid()))
    os.kill(os.getpid() if how == "kill" else os.getppid(), signal.SIGKILL)
    time.sleep(60)  # a worker whose parent is gone must not live to the end of it


def report(found: list[dict[str, Any]], results: Path) -> None:
    for row in runs.by_seed(found, "last"):
        print(f"size {row['settings']['size']}: {row['mean']:.6f}, {row['seeds']} seeds")
    runs.write(results / "results.json", "loss", found)


if __name__ == "__main__":
    runs.command(__doc__, here=Path("training_job"), grid=grid, work=work, report=report)
