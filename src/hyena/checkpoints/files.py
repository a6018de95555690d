"""Reading configs and weights from dicts, files and folders."""

from __future__ import annotations

import io
import json
import os
import pickle
import re
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hyena.checkpoints.checks import listed

# Path segments that wrappers put into parameter names: DistributedDataParallel, torch.compile, FSDP and its
# checkpointing.
_WRAPPERS = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
# Entries of a training checkpoint that hold the state dict itself.
_STATE_ENTRIES = ("state_dict", "model_state_dict", "model")
_WEIGHT_FILES = ("model.safetensors", "weights.ckpt", "pytorch_model.bin")
# What names the shards of a checkpoint in several files.
_INDICES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
_EXPECTED = f"a .safetensors file, a file of torch.save, or a folder with one of {', '.join(_WEIGHT_FILES)}"
# How a file of torch.save began before it was a zip archive (before PyTorch 1.6).
_OLD_FORMAT = bytes.fromhex("80028a0a6cfc9c46f9206aa850192e")
# What torch.load with weights_only says of objects that are no tensors.
_FOREIGN = re.compile(r"unsupported (global|class)|instantiate|not an allowed global", re.IGNORECASE)

Source = Mapping[str, Any] | str | os.PathLike


class _Recipe:
    """Stands for what Transformer Engine says about FP8 beside its layers' weights, which is not needed."""

    def __new__(cls, *args: Any) -> _Recipe:
        return super().__new__(cls)

    def __init__(self, *args: Any) -> None:
        pass


def _member(kind: Any, name: str) -> _Recipe:
    """A member of an enumeration of recipes, which some Pythons (3.11.2) write as ``getattr(kind, name)``."""
    if kind is not _Recipe:
        raise pickle.UnpicklingError(f"Unsupported global: getattr({kind!r}, {name!r})")
    return _Recipe()


# What weights_only lets through beside tensors: bytes, and recipes of FP8, whether or not that package is installed.
_RECIPES = "transformer_engine.common.recipe."
_HARMLESS: list[Any] = [
    io.BytesIO,
    (_member, "__builtin__.getattr"),
    (_member, "builtins.getattr"),
    *((_Recipe, _RECIPES + name) for name in ("DelayedScaling", "Format", "_FormatHelper")),
]


def read_config(source: Source) -> dict[str, Any]:
    """A config as a dict, from a dict or the path of a ``.json`` file (or of the folder that holds ``config.json``).

    Raises:
        TypeError: neither of them.
        FileNotFoundError: no such file.
        ValueError: a file with something else in it.
    """
    if isinstance(source, Mapping):
        return dict(source)
    path = _path(source, "a config")
    path = path / "config.json" if path.is_dir() else path
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; a config is a .json file, or a folder with a config.json")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # not JSON, or not UTF-8
        size = path.stat().st_size
        raise ValueError(f"{path} ({size} bytes) is not a config, which is a JSON object: {error}") from None
    if not isinstance(values, dict):
        raise ValueError(f"{path} holds a {type(values).__name__}, not an object with a model's settings")
    return values


def config_beside(weights: Source) -> Path:
    """The ``config.json`` that belongs to the weights at a path.

    Raises:
        ValueError: weights that are not at a path.
        FileNotFoundError: no such weights, or no config beside them.
    """
    if isinstance(weights, Mapping):
        raise ValueError("a state dict does not say what model it is of: pass its config, as a dict or a path")
    path = weights_file(weights)
    config = path.parent / "config.json"
    if not config.is_file():
        raise FileNotFoundError(f"{path} has no config.json beside it: pass the model's config, as a dict or a path")
    return config


def read_weights(source: Source) -> dict[str, Tensor]:
    """A flat state dict on the CPU, without what wrappers add to its names.

    Args:
        source: a state dict; a training checkpoint that holds one under ``"state_dict"``; or the path of a
            ``.safetensors`` file, of any other file that ``torch.load`` reads, or of a folder with one of the usual
            files.

    Raises:
        TypeError: none of them.
        FileNotFoundError: no such file.
        ValueError: a file that is damaged or of another kind, one with more than tensors in it, or entries that are no
            tensors, listed.
        ModuleNotFoundError: a ``.safetensors`` file without the ``safetensors`` package.
    """
    values = state_dict_of(source if isinstance(source, Mapping) else load_file(weights_file(source)))
    odd = sorted(str(name) for name, t in values.items() if not isinstance(name, str) or not isinstance(t, Tensor))
    if odd:
        raise ValueError(f"not a state dict: these entries are no tensors: {listed(odd)}")
    # Lightning keeps the counters of its metrics among the weights.
    tensors = {name: t.detach() for name, t in values.items() if "torchmetrics" not in name}
    return rename(tensors, without_wrappers)


def state_dict_of(values: Mapping[str, Any]) -> Mapping[str, Any]:
    """The state dict in a training checkpoint, or what was passed."""
    for entry in _STATE_ENTRIES:
        if isinstance(values.get(entry), Mapping):
            return values[entry]
    return values


def rename(tensors: Mapping[str, Tensor], new_name: Callable[[str], str]) -> dict[str, Tensor]:
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


def without_wrappers(name: str) -> str:
    """A parameter's name without the segments that wrappers put into it."""
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)


def _path(source: Any, what: str) -> Path:
    if not isinstance(source, (str, os.PathLike)):
        raise TypeError(f"{what} is a dict or a path, got a {type(source).__name__}")
    return Path(source)


def weights_file(source: str | os.PathLike) -> Path:
    """The file at a path, or the file with the weights in a folder.

    Raises:
        FileNotFoundError: there is none.
    """
    path = _path(source, "a checkpoint")
    if path.is_dir():
        found = [path / name for name in (*_WEIGHT_FILES, *_INDICES) if (path / name).is_file()]
        if not found:
            raise FileNotFoundError(
                f"none of {', '.join(_WEIGHT_FILES)} is in {path}; pass the path of the file itself if it is another"
            )
        return found[0]
    if not path.is_file():
        kind = "is not a file" if path.exists() else "does not exist (nothing is downloaded)"
        raise FileNotFoundError(f"{path} {kind}; a checkpoint is {_EXPECTED}")
    return path


def safetensors_package(path: Path) -> Any:
    """The ``safetensors`` package.

    Raises:
        ModuleNotFoundError: it is not installed; the message says which file needs it.
    """
    try:
        import safetensors.torch
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"reading {path} needs the safetensors package: pip install safetensors", name="safetensors"
        ) from error
    return safetensors


def load_shards(index: Path, find: Callable[[str], Path]) -> dict[str, Any]:
    """What the shards of a checkpoint hold, on the CPU.

    Args:
        index: the ``.index.json`` that says which tensor is in which file.
        find: the path of a shard, by its name in the index.

    Raises:
        ValueError: an index that is none, or that does not fit its shards.
        FileNotFoundError: a shard that is not there.
    """
    where = read_config(index).get("weight_map")
    if not isinstance(where, dict) or not all(isinstance(name, str) for name in where.values()):
        raise ValueError(f"{index} is no index of shards: it has no weight_map from names to files")
    found: dict[str, Any] = {}
    for name in sorted(set(where.values())):
        path = find(name)
        if not path.is_file():
            raise FileNotFoundError(f"{index} names {name}, which is not there")
        found |= load_file(path)
    if lost := sorted(set(where) - set(found)):
        raise ValueError(f"{index} names tensors that its shards do not hold: {listed(lost)}")
    return found


def load_file(path: Path, *, mapped: bool = False) -> Mapping[str, Any]:
    """What a file of weights holds, on the CPU.

    Args:
        path: a ``.safetensors`` file, an index of shards, or a file of ``torch.save``, which is read with
            ``weights_only``.
        mapped: leave the tensors of the latter on disk until they are used, if its format allows.

    Raises:
        ValueError: it is damaged, of another kind, or has more than tensors in it.
    """
    if path.name.endswith(".index.json"):
        return load_shards(path, lambda name: path.parent / name)
    if path.suffix == ".safetensors":
        package = safetensors_package(path)
        try:
            return package.torch.load_file(path)
        except package.SafetensorError as error:
            raise ValueError(unreadable(path, f"safetensors says {error}")) from None
    try:
        with torch.serialization.safe_globals(_HARMLESS):
            if mapped and zipfile.is_zipfile(path):
                values = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
            else:
                with path.open("rb") as file:
                    values = torch.load(file, map_location="cpu", weights_only=True)
    except PermissionError:
        raise
    except Exception as error:  # whatever a damaged archive leads to, OSError too
        if isinstance(error, pickle.UnpicklingError) and _is_of_torch(path) and _FOREIGN.search(str(error)):
            raise ValueError(
                f"{path} holds pickled Python objects beside its tensors, which can run any code when they are "
                "loaded. If you trust it, pass torch.load(path, map_location='cpu', weights_only=False) instead of "
                "the path"
            ) from error
        raise ValueError(unreadable(path, f"torch.load fails with {type(error).__name__}")) from None
    if not isinstance(values, Mapping):
        raise ValueError(f"{path} holds a {type(values).__name__}, not a state dict")
    return values


def _is_of_torch(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(len(_OLD_FORMAT)) == _OLD_FORMAT or zipfile.is_zipfile(path)


def unreadable(path: Path, why: str) -> str:
    """The message about a file that cannot be read."""
    size = path.stat().st_size
    state = "is empty" if size == 0 else f"({size} bytes) is damaged, or no checkpoint"
    return f"{path} {state}: {why}. A checkpoint is {_EXPECTED}"
