"""Weights that stay on disk until they are asked for, one tensor at a time."""

from __future__ import annotations

import dataclasses
import json
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hyena.checkpoints.checks import listed
from hyena.checkpoints.files import Source, load_file, safetensors_package, state_dict_of, unreadable, without_wrappers

_SHARD = re.compile(r"(.*-)(\d{5})(-of-)(\d{5})(\..*)")
_PART = re.compile(r"(.*)\.part\d+")
_EXPECTED = (
    "a .safetensors file, a file of torch.save, an index of shards (*.index.json), or a folder with one of them: "
    "*.safetensors.index.json, model.safetensors, *-00001-of-0000N.safetensors, pytorch_model.bin.index.json, "
    "pytorch_model.bin or one .pt file"
)
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


@dataclasses.dataclass(frozen=True)
class Stored:
    """A tensor of a checkpoint.

    Args:
        shape, dtype: of it.
        where: the file that it is in, for messages.
        read: returns it, on the CPU, mapped into memory where the file's format allows.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    where: str
    read: Callable[[], Tensor]

    @property
    def bytes(self) -> int:
        """Its size."""
        return torch.Size(self.shape).numel() * self.dtype.itemsize


def open_weights(source: Source) -> dict[str, Stored]:
    """Every tensor of a checkpoint by its name, without what wrappers add to names; none is read.

    Args:
        source: a state dict, a training checkpoint that holds one, or the path of a file, an index of shards or a
            folder. Files of ``torch.save`` are read with ``weights_only``.

    Raises:
        FileNotFoundError: no such file, or shards that are missing, named.
        ValueError: a file that is damaged or cut off, named; entries that are no tensors; an index that does not fit
            its shards.
        ModuleNotFoundError: ``.safetensors`` without the ``safetensors`` package.
    """
    if isinstance(source, Mapping):
        return _named(_of_state_dict(source, "the state dict"))
    found: dict[str, Stored] = {}
    files, index = _files(_path(source))
    for path in files:
        for name, tensor in _open_file(path).items():
            if name in found:
                raise ValueError(f"{name} is in two files, {found[name].where} and {path}")
            found[name] = tensor
    if lost := sorted(name for name in index if name not in found):
        raise ValueError(
            f"the index names tensors that its shards do not hold: {listed(lost)}; a shard is not what was indexed"
        )
    return _named(found)


def _path(source: Any) -> Path:
    if not isinstance(source, (str, os.PathLike)):
        raise TypeError(f"a checkpoint is a dict or a path, got a {type(source).__name__}")
    return Path(source)


def config_beside(source: Source) -> Path:
    """The ``config.json`` in the folder of a checkpoint.

    Raises:
        ValueError: a state dict, which is in no folder.
        FileNotFoundError: no such checkpoint, or no config beside it.
    """
    if isinstance(source, Mapping):
        raise ValueError("a state dict does not say what model it is of: pass its config, as a dict, a path or a name")
    path = _path(source)
    _files(path)  # a wrong path is the first thing to say
    config = (path if path.is_dir() else path.parent) / "config.json"
    if not config.is_file():
        raise FileNotFoundError(
            f"{path} has no config.json beside it: pass the model's config, as a dict, a path or a published model's "
            "name"
        )
    return config


def _named(tensors: dict[str, Stored]) -> dict[str, Stored]:
    renamed: dict[str, Stored] = {}
    for name, t in tensors.items():
        new = without_wrappers(name)
        if new in renamed:
            raise ValueError(f"two entries of the checkpoint are both named {new!r}, apart from wrappers")
        renamed[new] = t
    return renamed


def _of_state_dict(source: Mapping[str, Any], where: str) -> dict[str, Stored]:
    tensors, odd = {}, []
    for name, t in state_dict_of(source).items():
        if isinstance(t, Tensor):
            tensors[str(name)] = Stored(tuple(t.shape), t.dtype, where, t.detach)
        elif str(name).endswith("._extra_state"):  # bytes that layers of Transformer Engine note beside their weights
            tensors[str(name)] = Stored((0,), torch.uint8, where, lambda: torch.empty(0, dtype=torch.uint8))
        else:
            odd.append(str(name))
    if odd:
        raise ValueError(f"not a state dict: these entries are no tensors: {listed(sorted(odd))}")
    return tensors


def _files(path: Path) -> tuple[list[Path], dict[str, str]]:
    """The files that a path stands for, and which of them an index says that each tensor is in."""
    if path.is_dir():
        return _files(_in_folder(path))
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist (nothing is downloaded); a checkpoint is {_EXPECTED}")
    if (match := _PART.fullmatch(path.name)) is not None:
        whole = match[1]
        raise ValueError(f"{path} is a piece of a file: join them first, in order of their numbers, to {whole}")
    if path.name.endswith(".json"):
        index = _read_index(path)
        return _all_there([path.parent / name for name in sorted(set(index.values()))], path), index
    if (shard := _SHARD.fullmatch(path.name)) is not None:
        count = int(shard[4])
        names = [f"{shard[1]}{i:05d}{shard[3]}{shard[4]}{shard[5]}" for i in range(1, count + 1)]
        return _all_there([path.parent / name for name in names], path), {}
    return [path], {}


def _in_folder(folder: Path) -> Path:
    for pattern in (
        "*.safetensors.index.json",
        "model.safetensors",
        "*-00001-of-*.safetensors",
        "*.bin.index.json",
        "pytorch_model.bin",
        "*.pt",
        "*.safetensors",
    ):
        found = sorted(folder.glob(pattern))
        if len(found) > 1:
            names = ", ".join(p.name for p in found)
            raise ValueError(f"{folder} holds several checkpoints: pass the path of one of {names}")
        if found:
            return found[0]
    if pieces := sorted((p.name for p in folder.iterdir() if _PART.fullmatch(p.name)), key=_number):
        raise ValueError(f"{folder} holds pieces of a file, {', '.join(pieces)}: join them first, in that order")
    if shards := sorted(p.name for p in folder.iterdir() if _SHARD.fullmatch(p.name)):
        raise FileNotFoundError(f"{folder} holds {', '.join(shards)}, but not the first shard")
    raise FileNotFoundError(f"{folder} holds no checkpoint, which is {_EXPECTED}")


def _number(piece: str) -> tuple[str, int]:
    """Of a piece of a file, after its whole: part10 comes after part2."""
    whole, _, number = piece.rpartition(".part")
    return whole, int(number)


def _read_index(path: Path) -> dict[str, str]:
    try:
        index = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
        if not isinstance(index, dict) or not all(isinstance(f, str) and Path(f).name == f for f in index.values()):
            raise ValueError("weight_map must name a file of the same folder for each tensor")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{path} is no index of shards, a JSON object with a weight_map: {error!r}") from None
    return index


def _all_there(files: list[Path], named_by: Path) -> list[Path]:
    if missing := [path.name for path in files if not path.is_file()]:
        raise FileNotFoundError(
            f"{len(missing)} of the {len(files)} shards that {named_by.name} stands for are not in {named_by.parent}: "
            f"{listed(missing)}"
        )
    return files


def _open_file(path: Path) -> dict[str, Stored]:
    if path.suffix != ".safetensors":
        return _of_state_dict(load_file(path, mapped=True), str(path))
    package = safetensors_package(path)
    try:
        file = package.safe_open(path, framework="pt")
        tensors = {}
        for name in file.keys():  # noqa: SIM118 (a file, not a dict)
            part = file.get_slice(name)
            kind = part.get_dtype()
            if kind not in _DTYPES:
                raise ValueError(f"{name} in {path} is of dtype {kind}, which is not known")
            tensors[name] = Stored(tuple(part.get_shape()), _DTYPES[kind], str(path), _reader(file, name, path))
    except package.SafetensorError as error:
        raise ValueError(unreadable(path, f"safetensors says {error}")) from None
    return tensors


def _reader(file: Any, name: str, path: Path) -> Callable[[], Tensor]:
    def read() -> Tensor:
        try:
            return file.get_tensor(name)
        except Exception as error:  # the file may have changed since it was opened
            raise ValueError(unreadable(path, f"reading {name} fails: {error}")) from None

    return read
