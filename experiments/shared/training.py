"""The training loop of the experiments: AdamW, a linear rise and a cosine, resumable to the same weights.

Batches are a function of the step, so that a run that goes on sees the ones it would have seen.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from experiments.shared.runs import Place
from hyena.optim import param_groups

SAVE_EVERY = 60.0  # seconds between checkpoints of a run


@dataclasses.dataclass(frozen=True)
class Schedule:
    """Optimizer and learning rates of a run.

    Attributes:
        steps: optimizer steps.
        lr: highest learning rate.
        warmup: steps of the linear rise.
        floor: what the cosine ends at, as a share of ``lr``.
        filter_lr: of long filters; ``lr`` if None.
        clip: largest norm of the gradient; 0 leaves it.
    """

    steps: int
    lr: float
    weight_decay: float = 0.1
    betas: tuple[float, float] = (0.9, 0.98)
    warmup: int = 0
    floor: float = 0.0
    filter_lr: float | None = None
    clip: float = 1.0

    def factor(self, step: int) -> float:
        """What every learning rate is multiplied by in ``step``, from 0."""
        if step < self.warmup:
            return (step + 1) / (self.warmup + 1)
        cosine = 0.5 * (1.0 + math.cos(math.pi * (step - self.warmup) / max(1, self.steps - self.warmup)))
        return self.floor + (1.0 - self.floor) * cosine


def train(
    model: nn.Module,
    loss: Callable[[int], Tensor],
    schedule: Schedule,
    place: Place,
    *,
    evaluate: Callable[[], dict[str, float]],
    evaluate_every: int,
    until: Callable[[dict[str, float]], bool] | None = None,
) -> list[dict[str, float]]:
    """Trains a model, or goes on with training it.

    Args:
        model: on its device already.
        loss: of the batch of a step, from 0. Random numbers other than the step's own are the global ones.
        schedule: the optimizer's numbers.
        place: where the checkpoint goes.
        evaluate: numbers of the model as it is, in eval mode and without gradients.
        evaluate_every: steps between two evaluations; the last step has one too.
        until: training stops after the first evaluation of which this is true.

    Returns:
        The history: for each evaluation the step, the mean training loss since the one before, the seconds spent
        training, and what ``evaluate`` returned.
    """
    groups = param_groups(model, schedule.lr, schedule.weight_decay, filter_lr=schedule.filter_lr)
    optimizer = torch.optim.AdamW(groups, betas=schedule.betas, fused=True)
    rates = [group["lr"] for group in optimizer.param_groups]
    parameters = list(model.parameters())
    run: dict[str, Any] = {"step": 0, "seconds": 0.0, "losses": [], "history": []}
    if place.state.exists():
        run = _restore(place, model, optimizer)
    saved = time.monotonic()
    model.train()
    bar = tqdm(total=schedule.steps, initial=run["step"], desc=place.label, unit="step", leave=False, mininterval=1.0)
    while run["step"] < schedule.steps and not (until and run["history"] and until(run["history"][-1])):
        began = time.perf_counter()
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * schedule.factor(run["step"])
        value = loss(run["step"])
        value.backward()
        if schedule.clip > 0:
            nn.utils.clip_grad_norm_(parameters, schedule.clip)
        optimizer.step()
        optimizer.zero_grad()
        run["losses"].append(value.item())
        run["seconds"] += time.perf_counter() - began
        run["step"] += 1
        bar.update()
        if run["step"] % evaluate_every == 0 or run["step"] == schedule.steps:
            model.eval()
            with torch.no_grad():
                found = evaluate()
            model.train()
            mean = math.fsum(run["losses"]) / len(run["losses"])
            row = {"step": run["step"], "seconds": round(run["seconds"], 3), "training_loss": mean, **found}
            run["history"].append(row)
            run["losses"] = []
            bar.set_postfix({name: f"{value:.4g}" for name, value in found.items()})
        if time.monotonic() - saved > SAVE_EVERY:
            _save(place, model, optimizer, run)
            saved = time.monotonic()
    bar.close()
    model.eval()
    return run["history"]


def _save(place: Place, model: nn.Module, optimizer: torch.optim.Optimizer, run: dict[str, Any]) -> None:
    temporary = place.state.with_suffix(".part")
    random = {"cpu": torch.get_rng_state()}
    if place.device.startswith("cuda"):
        random["cuda"] = torch.cuda.get_rng_state(place.device)
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "random": random, **run}, temporary)
    temporary.replace(place.state)


def _restore(place: Place, model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    state = torch.load(place.state, map_location="cpu", weights_only=True)
    model.load_state_dict(state.pop("model"))
    optimizer.load_state_dict(state.pop("optimizer"))
    random = state.pop("random")
    torch.set_rng_state(random["cpu"])
    if "cuda" in random:
        torch.cuda.set_rng_state(random["cuda"], place.device)
    return state


def generator(seed: int, step: int) -> torch.Generator:
    """Random numbers of one step of a run: the same whenever it is asked for."""
    return torch.Generator().manual_seed(seed * 1_000_003 + step)
