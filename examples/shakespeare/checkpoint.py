"""Saving a run and going on from it. Everything in a checkpoint is checked before any of it is loaded."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from trainer import Trainer

from hyena.command.folder import replacing

AGAIN = "--restart begins again"

# Names of weights in checkpoints of version 0.1, and now.
_RENAMED = {
    ".mixer.short_weight": ".mixer.short.weight",
    ".mixer.short_bias": ".mixer.short.bias",
    ".mixer.filter_bias": ".mixer.conv.bias",
    ".mixer.filter.": ".mixer.conv.filter.",
}


def save(trainer: Trainer, path: Path) -> None:
    """Writes a checkpoint; whenever the process is killed, ``path`` holds a whole one, the old or the new."""
    with replacing(path) as file:
        torch.save(trainer.state(), file)


def resume(trainer: Trainer, path: Path) -> bool:
    """Goes on from the checkpoint at ``path``, if there is one.

    Raises:
        ValueError: it is not a checkpoint, one of another run, or damaged; in one line. ``trainer`` is as it was.
        OSError: it cannot be read.
    """
    if not path.exists():
        return False
    try:
        with path.open("rb") as file:
            state = torch.load(file, map_location=trainer.device, weights_only=True)
        found = {"mlp": "gelu", **state["identity"]}  # what all models had when it was no setting
    except (PermissionError, IsADirectoryError):
        raise
    except Exception as e:  # whatever a damaged archive leads to, OSError too
        raise ValueError(f"{path} is not a checkpoint of this program ({type(e).__name__}); {AGAIN}") from e
    differing = [f"{k} {found.get(k)} (now {v})" for k, v in trainer.identity().items() if found.get(k) != v]
    if differing:
        raise ValueError(
            f"{path} is of a run with other settings: {', '.join(differing)}. Choose another --out, or --restart to "
            "begin again"
        )
    state = with_names_of_today(state, trainer)
    fault = next(faults(state, trainer), None)
    if fault is not None:
        raise ValueError(f"{path} is damaged: {fault}; {AGAIN}")
    # Random states live on the CPU, wherever the weights are.
    for key in ("batches", "random", "random_device"):
        state[key] = None if state[key] is None else state[key].cpu()
    trainer.restore(state)
    return True


def with_names_of_today(state: Mapping[str, Any], trainer: Trainer) -> dict[str, Any]:
    """A checkpoint by today's names of weights, and with the optimizer's state in today's order of them.

    The optimizer knows a parameter by its number: groups in turn, and in a group the order of the model's state dict,
    which is saved. What does not look like a checkpoint is left to :func:`faults`.
    """
    state = dict(state)
    if not isinstance(state.get("model"), Mapping) or not all(isinstance(name, str) for name in state["model"]):
        return state
    state["model"] = {_name_of_today(name): t for name, t in state["model"].items()}
    place = {name: i for i, name in enumerate(state["model"])}
    names = {id(p): name for name, p in trainer.model.named_parameters()}
    groups = [[names[id(p)] for p in group["params"]] for group in trainer.optimizer.param_groups]
    optimizer = state.get("optimizer")
    if not all(name in place for group in groups for name in group) or not isinstance(optimizer, Mapping):
        return state
    then = [name for group in groups for name in sorted(group, key=place.__getitem__)]
    now = {name: i for i, name in enumerate(name for group in groups for name in group)}
    if isinstance(held := optimizer.get("state"), Mapping) and set(held) <= set(range(len(then))):
        state["optimizer"] = {**optimizer, "state": {now[then[i]]: moments for i, moments in held.items()}}
    return state


def _name_of_today(name: str) -> str:
    for then, now in _RENAMED.items():
        name = name.replace(then, now)
    return name


def faults(state: Mapping[str, Any], trainer: Trainer) -> Iterator[str]:
    """What is wrong with a checkpoint of this run's settings, the first thing first.

    PyTorch's ``load_state_dict`` does not look: a fused optimizer reads and writes as many entries of its state as the
    parameter has, whatever the state's shape.
    """
    mine = trainer.state()
    if missing := sorted(set(mine) - set(state)):
        yield f"it has no {', '.join(missing)}"
        return
    step = state["step"]
    if type(step) is not int or not 0 <= step <= trainer.settings.steps:
        yield f"step is {step!r}, not a number from 0 to {trainer.settings.steps}"
        return
    saved = state["model"] if isinstance(state["model"], Mapping) else {}
    parameters = {name for name, _ in trainer.model.named_parameters(remove_duplicate=False)}
    # A buffer that came with a later version may be missing.
    kept = {name: t for name, t in mine["model"].items() if name in parameters or name in saved}
    yield from _tensors("model", state["model"], kept)
    yield from _optimizer(state["optimizer"], mine["optimizer"], trainer, step)
    for name in ("batches", "random", "random_device"):
        if mine[name] is not None and (name != "random_device" or state[name] is not None):
            yield from _tensor(name, state[name], mine[name])
    yield from _random(state, trainer)
    yield from _history(state, step)


def _tensors(where: str, got: Any, want: Mapping[str, Any]) -> Iterator[str]:
    """Faults of named tensors, which should have the names, shapes and dtypes of ``want`` and be finite."""
    if not isinstance(got, Mapping) or set(got) != set(want):
        names = sorted(map(str, set(got) ^ set(want))) if isinstance(got, Mapping) else [type(got).__name__]
        yield f"{where} has other entries than this run's: {', '.join(names)}"
        return
    for name, t in want.items():
        yield from _tensor(f"{where} {name}", got[name], t)


def _tensor(name: str, got: Any, want: Tensor) -> Iterator[str]:
    if not isinstance(got, Tensor):
        yield f"{name} is a {type(got).__name__}, not a tensor"
    elif got.layout != want.layout:
        yield f"{name} is {got.layout}, not {want.layout}"
    elif got.shape != want.shape or got.dtype != want.dtype:
        yield f"{name} is {got.dtype} of shape {tuple(got.shape)}, not {want.dtype} of shape {tuple(want.shape)}"
    elif got.is_floating_point() and not got.isfinite().all():
        yield f"{name} has entries that are not finite"


def _optimizer(got: Any, want: Mapping[str, Any], trainer: Trainer, step: int) -> Iterator[str]:
    """Faults of AdamW's state: two moments and a count for each parameter, in the groups of this run."""
    if not isinstance(got, Mapping) or not {"state", "param_groups"} <= set(got):
        yield "optimizer is not the state of one"
        return
    try:
        groups = [(group["name"], list(group["params"]), group["weight_decay"]) for group in got["param_groups"]]
    except (TypeError, KeyError):
        yield "optimizer has no parameter groups"
        return
    mine = [(group["name"], list(group["params"]), group["weight_decay"]) for group in want["param_groups"]]
    if groups != mine:
        yield f"optimizer has the groups {_sizes(groups)}, not {_sizes(mine)}"
        return
    parameters = [p for group in trainer.optimizer.param_groups for p in group["params"]]
    wanted = range(len(parameters)) if step else range(0)  # a parameter has a state from its first step on
    if not isinstance(got["state"], Mapping) or set(got["state"]) != set(wanted):
        yield f"optimizer does not have the state of {len(parameters)} parameters after {step} steps"
        return
    count = torch.full((), step, dtype=torch.float32, device=trainer.device)
    for i in wanted:
        held, moment = got["state"][i], torch.zeros_like(parameters[i])
        where = f"optimizer's parameter {i},"
        yield from _tensors(where, held, {"step": count, "exp_avg": moment, "exp_avg_sq": moment})
        if held["step"].item() != step:
            yield f"{where} step is {held['step'].item():g}, not {step}"
        if (held["exp_avg_sq"] < 0).any():
            yield f"{where} exp_avg_sq has negative entries"


def _sizes(groups: list[tuple[str, list[int], float]]) -> str:
    return ", ".join(f"{name} ({len(params)} parameters, decay {decay})" for name, params, decay in groups)


def _random(state: Mapping[str, Any], trainer: Trainer) -> Iterator[str]:
    for name in ("batches", "random"):
        try:
            torch.Generator().set_state(state[name].cpu())
        except RuntimeError as e:
            yield f"{name} is no state of random numbers ({str(e).splitlines()[0]})"


def _history(state: Mapping[str, Any], step: int) -> Iterator[str]:
    seconds, train, validation = state["seconds"], state["train_losses"], state["validation_losses"]
    if not isinstance(seconds, float) or not 0 <= seconds < math.inf:
        yield f"seconds is {seconds!r}, not a time"
    if not isinstance(train, list) or len(train) != step or not all(isinstance(x, float) for x in train):
        yield f"train_losses are not {step} numbers"
    if not isinstance(validation, list) or not all(_is_measurement(x, step) for x in validation):
        yield f"validation_losses are not pairs of a step up to {step} and a loss"


def _is_measurement(x: Any, step: int) -> bool:
    return (
        isinstance(x, (tuple, list))
        and len(x) == 2
        and type(x[0]) is int
        and 0 <= x[0] <= step
        and isinstance(x[1], float)
    )
