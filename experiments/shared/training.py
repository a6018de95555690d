"""The training loop of the experiments: AdamW, a linear rise and a cosine, resumable to the same weights.

Batches are a function of the step, so that a run that goes on sees the ones it would have seen.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from experiments.shared.runs import Place
from hyena.command.folder import replacing
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
    with warnings.catch_warnings():
        if schedule.filter_lr is None:  # a model without long filters is worth a warning only where some are expected
            warnings.filterwarnings("ignore", "the parameter group 'filters' is empty")
        groups = param_groups(model, schedule.lr, schedule.weight_decay, filter_lr=schedule.filter_lr)
    optimizer = torch.optim.AdamW(groups, betas=schedule.betas, fused=True)
    rates = [group["lr"] for group in optimizer.param_groups]
    parameters = list(model.parameters())
    run: dict[str, Any] = {"step": 0, "seconds": 0.0, "losses": [], "history": []}
    identity = _identity(model, schedule, place, evaluate_every)
    if place.state.exists() and (state := _load(place, identity)) is not None:
        run = _restore(state, place, model, optimizer)
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
            _save(place, identity, model, optimizer, run)
            saved = time.monotonic()
    bar.close()
    model.eval()
    return run["history"]


def _identity(model: nn.Module, schedule: Schedule, place: Place, evaluate_every: int) -> dict[str, Any]:
    """What a checkpoint must agree with to belong to this run.

    Its file is named by the run's settings; they do not say what becomes of them when defaults or the script change.
    """
    start = hashlib.sha256()
    for name, t in model.state_dict().items():
        start.update(name.encode() + str(t.shape).encode())
        start.update(t.detach().cpu().reshape(-1).contiguous().view(torch.uint8).numpy().tobytes())
    return {
        "model at the start": start.hexdigest(),
        "schedule": dataclasses.asdict(schedule),
        "evaluate_every": evaluate_every,
        "kind of device": place.device.partition(":")[0],
    }


def _save(
    place: Place, identity: dict[str, Any], model: nn.Module, optimizer: torch.optim.Optimizer, run: dict[str, Any]
) -> None:
    random = {"cpu": torch.get_rng_state()}
    if place.device.startswith("cuda"):
        random["cuda"] = torch.cuda.get_rng_state(place.device)
    state = {"identity": identity, "model": model.state_dict(), "optimizer": optimizer.state_dict(), "random": random}
    with replacing(place.state) as file:
        torch.save({**state, "run": run}, file)


def _load(place: Place, identity: dict[str, Any]) -> dict[str, Any] | None:
    """The run's checkpoint, or None, said, if what is there is none: then the run begins again."""
    try:
        state: dict[str, Any] = torch.load(place.state, map_location="cpu", weights_only=True)
        found = state.get("identity", {})
        other = [name for name, value in identity.items() if found.get(name) != value]
        why = f"it is of a run with another {', '.join(other)}" if other else ""
    except Exception as e:  # whatever a damaged archive leads to
        why = f"it cannot be read ({type(e).__name__})"
    if why:
        tqdm.write(f"{place.label}: begins again, not from {place.state}: {why}", file=sys.stdout)
        return None
    return state


def _restore(state: dict[str, Any], place: Place, model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    torch.set_rng_state(state["random"]["cpu"])
    if "cuda" in state["random"]:
        torch.cuda.set_rng_state(state["random"]["cuda"], place.device)
    run: dict[str, Any] = state["run"]
    return run


def generator(seed: int, step: int) -> torch.Generator:
    """Random numbers of one step of a run: the same whenever it is asked for."""
    return torch.Generator().manual_seed(seed * 1_000_003 + step)
