"""Checks of configs and of weights, made before anything is built from them."""

from __future__ import annotations

import math
import operator
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

Shapes = dict[str, tuple[int, ...]]

_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
# Names that an error lists at most.
_LISTED = 30


def check_keys(config: Mapping[str, Any], known: Iterable[str], what: str) -> None:
    """Raises ValueError for keys of a config that are not ``known``, listed."""
    if unknown := sorted(map(str, set(config) - set(known))):
        raise ValueError(f"unknown keys in the config of {what}: {listed(unknown)}")


def check_integer(name: str, value: Any, least: int) -> int:
    """``value`` as an int of at least ``least``, or a ValueError."""
    try:
        integer = None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        integer = None
    if integer is None or integer < least:
        raise ValueError(f"{name}={value!r} cannot be loaded: it must be an integer of at least {least}")
    return integer


def check_number(name: str, value: Any, lowest: float = -math.inf, highest: float = math.inf) -> float:
    """``value``, which must be a finite number between two others, or a ValueError."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not is_number or not lowest <= value <= highest or not math.isfinite(value):
        bounds = [f" from {lowest}"] * math.isfinite(lowest) + [f" to {highest}"] * math.isfinite(highest)
        raise ValueError(f"{name}={value!r} cannot be loaded: it must be a finite number{''.join(bounds)}")
    return value


def check_flag(name: str, value: Any) -> bool:
    """``value``, which must be True or False, or a ValueError."""
    if not isinstance(value, bool):
        raise ValueError(f"{name}={value!r} cannot be loaded: it must be True or False")
    return value


def check_count(setting: str, layers: int, indices: Iterable[int], part: Callable[[int], str]) -> None:
    """Compares a number of layers with those in a checkpoint, before names and shapes are made for all of them.

    Args:
        setting: of the config, with its value, for the message.
        layers: how many it makes.
        indices: of the layers that the checkpoint has, from 0.
        part: the name of a part of the layer with an index.

    Raises:
        ValueError: the checkpoint has fewer. A few layers of a checkpoint that has none are left to
            :func:`check_names`, which lists what else is missing.
    """
    found = set(indices)
    held = min(max(found, default=-1) + 1, 2 * len(found))  # some may be missing in between
    if layers > held and (found or layers > _LISTED):
        raise ValueError(
            f"the checkpoint does not fit its config: {setting} makes {layers} layers, but the checkpoint has {held}; "
            f"missing keys: {part(held)}, …"
        )


def check_names(tensors: Mapping[str, Tensor], required: Shapes, optional: Shapes) -> None:
    """Compares names and shapes of ``tensors`` with those of a model.

    Args:
        tensors: what the checkpoint holds.
        required, optional: shapes by name.

    Raises:
        ValueError: keys that fit nowhere, missing keys and other shapes, listed together.
    """
    check_shapes({name: tuple(t.shape) for name, t in tensors.items()}, required, optional)


def check_shapes(held: Shapes, required: Shapes, optional: Shapes) -> None:
    """:func:`check_names` of shapes by name."""
    known = {**required, **optional}
    problems = []
    if unknown := sorted(set(held) - set(known)):
        problems.append(f"keys that fit nowhere: {listed(unknown)}")
    if missing := sorted(set(required) - set(held)):
        problems.append(f"missing keys: {listed(missing)}")
    shapes = [
        f"{name} is {held[name]}, the config makes it {shape}{_as_many(held[name], shape)}"
        for name, shape in sorted(known.items())
        if name in held and held[name] != shape
    ]
    if shapes:
        problems.append(listed(shapes, "; "))
    if problems:
        raise ValueError("the checkpoint does not fit its config: " + "; ".join(problems))


def _as_many(held: tuple[int, ...], shape: tuple[int, ...]) -> str:
    """A hint where a tensor's numbers are there, but lie in another order."""
    return " (as many numbers, in another order)" if math.prod(held) == math.prod(shape) else ""


def check_values(tensors: Mapping[str, Tensor]) -> torch.dtype:
    """Checks that weights are finite floating-point numbers of one dtype.

    Returns:
        The dtype.

    Raises:
        ValueError: another kind of tensor, entries that are NaN or infinite, or a mixture of dtypes, which loading
            would have to round or widen; it names the tensors.
    """
    for name, t in tensors.items():
        if t.layout != torch.strided or t.is_quantized or t.dtype not in _DTYPES:
            kind = t.dtype if t.layout == torch.strided else t.layout
            raise ValueError(f"{name} is {kind}: weights are dense, and float16, bfloat16, float32 or float64")
        if t.is_meta:
            raise ValueError(f"{name} is on the meta device, where tensors have no values")
    counts = Counter(t.dtype for t in tensors.values())
    if len(counts) > 1:
        usual = counts.most_common(1)[0][0]
        others = [f"{name} ({t.dtype})" for name, t in tensors.items() if t.dtype != usual]
        raise ValueError(
            f"the weights have several dtypes: {counts[usual]} are {usual}, but not {listed(others)}. Convert them to "
            "one first: {name: t.float() for name, t in state_dict.items()}"
        )
    for name, t in tensors.items():
        if bad := t.numel() - int(t.isfinite().sum()):
            raise ValueError(f"{name} has {bad} entries that are NaN or infinite, of {t.numel()}")
    return next(iter(counts), torch.get_default_dtype())


def listed(names: list[str], separator: str = ", ") -> str:
    """The first of ``names``, and how many more there are."""
    more = [f"and {len(names) - _LISTED} more"] if len(names) > _LISTED else []
    return separator.join(names[:_LISTED] + more)
