"""Reading weights and configs from wherever they are, and checking that they fit."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

# Path segments that wrappers put into parameter names: DistributedDataParallel, torch.compile, FSDP and its
# checkpointing.
_WRAPPERS = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
# Entries of a training checkpoint that hold the state dict itself.
_STATE_ENTRIES = ("state_dict", "model_state_dict", "model")
_WEIGHT_FILES = ("model.safetensors", "weights.ckpt", "pytorch_model.bin")

Source = Mapping[str, Any] | str | os.PathLike


def read_config(source: Source) -> dict[str, Any]:
    """A config as a dict, from a dict or the path of a ``.json`` file (or of the folder that holds ``config.json``)."""
    if isinstance(source, Mapping):
        return dict(source)
    path = Path(source)
    path = path / "config.json" if path.is_dir() else path
    values = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(values, dict):
        raise ValueError(f"{path} holds a {type(values).__name__}, not an object with a model's settings")
    return values


def read_weights(source: Source) -> dict[str, Tensor]:
    """A flat state dict on the CPU, without what wrappers add to its names.

    Args:
        source: a state dict; a training checkpoint that holds one under ``"state_dict"``; or the path of a
            ``.safetensors`` file, of any other file that ``torch.load`` reads, or of a folder with one of the usual
            files.

    Raises:
        ValueError: a file with more than tensors in it, or entries that are no tensors, listed.
        ModuleNotFoundError: a ``.safetensors`` file without the ``safetensors`` package.
    """
    values = source if isinstance(source, Mapping) else _load(Path(source))
    for entry in _STATE_ENTRIES:
        if isinstance(values.get(entry), Mapping):
            values = values[entry]
            break
    odd = sorted(str(name) for name, t in values.items() if not isinstance(t, Tensor))
    if odd:
        raise ValueError(f"not a state dict: these entries are no tensors: {_listed(odd)}")
    # Lightning keeps the counters of its metrics among the weights.
    return rename({name: t for name, t in values.items() if "torchmetrics" not in name}, _without_wrappers)


def rename(tensors: Mapping[str, Tensor], new_name: Any) -> dict[str, Tensor]:
    """``tensors`` under new names.

    Raises:
        ValueError: two names become one.
    """
    renamed: dict[str, Tensor] = {}
    for name, t in tensors.items():
        new = new_name(name)
        if new in renamed:
            raise ValueError(f"two entries of the checkpoint are both named {new!r}, apart from wrappers")
        renamed[new] = t
    return renamed


def _without_wrappers(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)


def _load(path: Path) -> Mapping[str, Any]:
    if path.is_dir():
        found = [path / name for name in _WEIGHT_FILES if (path / name).is_file()]
        if not found:
            raise FileNotFoundError(f"none of {list(_WEIGHT_FILES)} is in {path}; pass the path of the file itself")
        path = found[0]
    if path.suffix == ".safetensors":
        try:
            from safetensors.torch import load_file
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                f"reading {path} needs the safetensors package: pip install safetensors", name="safetensors"
            ) from error
        return load_file(path)
    try:
        values = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path} holds pickled Python objects beside its tensors, which can run any code when they are loaded. If "
            "you trust it, pass torch.load(path, map_location='cpu', weights_only=False) instead of the path"
        ) from error
    if not isinstance(values, Mapping):
        raise ValueError(f"{path} holds a {type(values).__name__}, not a state dict")
    return values


def check_names(
    tensors: Mapping[str, Tensor],
    required: Mapping[str, tuple[int, ...]],
    optional: Mapping[str, tuple[int, ...]],
) -> None:
    """Whether ``tensors`` are what a model needs.

    Args:
        tensors: what the checkpoint holds.
        required, optional: shapes by name.

    Raises:
        ValueError: keys that fit nowhere, missing keys or other shapes; all of them are listed.
    """
    known = {**required, **optional}
    problems = []
    if left := sorted(set(tensors) - set(known)):
        problems.append(f"keys that fit nowhere: {_listed(left)}")
    if missing := sorted(set(required) - set(tensors)):
        problems.append(f"missing keys: {_listed(missing)}")
    shapes = [
        f"{name} is {tuple(tensors[name].shape)}, the config makes it {shape}"
        for name, shape in sorted(known.items())
        if name in tensors and tuple(tensors[name].shape) != shape
    ]
    if shapes:
        problems.append("; ".join(shapes))
    if problems:
        raise ValueError("the checkpoint does not fit its config: " + "; ".join(problems))


def check_keys(config: Mapping[str, Any], known: Iterable[str], what: str) -> None:
    """Whether every key of a config is known.

    Raises:
        ValueError: keys that are not, listed.
    """
    unknown = sorted(set(config) - set(known))
    if unknown:
        raise ValueError(f"unknown keys in the config of {what}: {_listed(unknown)}")


def _listed(names: list[str]) -> str:
    return ", ".join(names)
