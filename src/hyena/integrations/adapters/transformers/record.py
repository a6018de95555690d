"""What a checkpoint says of a replacement: how to do it again, where the replaced attention had a weight.

A replaced model's ``state_dict`` has, beside the mixer's tensors, one tensor of bytes for each layer, under the name
that a weight of the attention had. It serves twice: the checkpoint says how the model was made, whoever saves it and
however; and a model with attention, which expects a matrix there, raises for its shape instead of starting from random
attention.
"""

from __future__ import annotations

import functools
import importlib
import json
from typing import Any

import torch
from torch import Tensor, nn

_SIZE = 1024  # bytes: records of one length can be loaded over each other
_MARK = "hyena replacement"


class ReplacementRecord(nn.Module):
    """A JSON text as a buffer of bytes.

    Args:
        text: the JSON.
        leaf: the buffer's name.
    """

    def __init__(self, text: str, leaf: str = "weight") -> None:
        super().__init__()
        self.leaf = leaf
        self.register_buffer(leaf, _to_bytes(text))

    def write(self, text: str) -> None:
        """Replaces the text."""
        old = getattr(self, self.leaf)
        self.register_buffer(self.leaf, _to_bytes(text).to(old.device))


def encode(settings: dict[str, Any]) -> str:
    """Settings of a replacement as JSON; of what has no name in the package only that it was there."""
    return json.dumps({"kind": _MARK} | {name: _encoded(value) for name, value in settings.items()})


def decode(tensor: Tensor) -> dict[str, Any] | None:
    """The settings in a tensor of a checkpoint; None if it holds something else."""
    if tensor.dtype != torch.uint8 or tensor.dim() != 1:
        return None
    try:
        found = json.loads(bytes(tensor.tolist()).decode())
    except ValueError:
        return None
    if not isinstance(found, dict) or found.pop("kind", None) != _MARK:
        return None
    return {name: _decoded(value) for name, value in found.items()}


class Unsaved(str):
    """The description of a setting that a checkpoint cannot hold."""


def _to_bytes(text: str) -> Tensor:
    data = text.encode()
    size = -(-len(data) // _SIZE) * _SIZE
    return torch.tensor(list(data.ljust(size)), dtype=torch.uint8)


def _encoded(value: Any) -> Any:
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (list, tuple)):
        return [_encoded(v) for v in value]
    if isinstance(value, dict):
        return {"dict": {str(k): _encoded(v) for k, v in value.items()}}
    if isinstance(value, functools.partial) and not value.args:
        return {"partial": _encoded(value.func), "keywords": _encoded(value.keywords)}
    room, _, _ = getattr(value, "__module__", "").removeprefix("hyena.").partition(".")
    if isinstance(value, type) and room in _ROOMS and _exported(room, value.__name__) is value:
        return {"class": f"{room}.{value.__name__}"}
    return {"unsaved": repr(value).splitlines()[0].rstrip("(")}


def _decoded(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(_decoded(v) for v in value)
    if not isinstance(value, dict):
        return value
    if "dict" in value:
        return {k: _decoded(v) for k, v in value["dict"].items()}
    if "partial" in value:
        function, keywords = _decoded(value["partial"]), _decoded(value["keywords"])
        unsaved = [v for v in (function, *keywords.values()) if isinstance(v, Unsaved)]
        return unsaved[0] if unsaved else functools.partial(function, **keywords)
    if "class" in value:
        room, _, name = value["class"].partition(".")
        found = _exported(room, name) if room in _ROOMS else None
        if found is None:
            raise ValueError(f"the checkpoint was made with hyena.{value['class']}, which this version does not have")
        return found
    return Unsaved(value.get("unsaved", ""))


_ROOMS = ("mixers", "filters", "conv")


def _exported(room: str, name: str) -> Any:
    module = importlib.import_module(f"hyena.{room}")
    if name in getattr(module, "__all__", ()):
        return getattr(module, name)
    return importlib.import_module("hyena").HyenaOperator if name == "HyenaOperator" else None
