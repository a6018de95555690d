"""Checks of the arguments of mixers, and the activations that have a name."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

# The product of N + 1 activations leaves float16's range soon after this, and nobody has trained deeper recurrences
# (the paper and the released models use 2 and 3). More depth is more layers.
MAX_ORDER = 8

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "relu": F.relu,
    "sigmoid": torch.sigmoid,
    "silu": F.silu,
    "tanh": torch.tanh,
}


def find_activation(activation: str | Callable[[Tensor], Tensor] | None) -> Callable[[Tensor], Tensor] | None:
    """The function of a name; functions and None as they are. Raises ``ValueError`` for names that are not known."""
    if activation is None or callable(activation):
        return activation
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation must be a function, None or one of {sorted(ACTIVATIONS)}, got {activation!r}")
    return ACTIVATIONS[activation]


def check(
    *,
    d_model: int,
    l_max: int,
    order: int,
    num_heads: int,
    short_taps: int,
    dropout: float,
    filter_groups: int | None,
    inner_factor: int,
    flags: dict[str, bool],
) -> None:
    """Raises for arguments of another type (``TypeError``) or that do not fit together (``ValueError``)."""
    counts = {
        "d_model": d_model,
        "l_max": l_max,
        "num_heads": num_heads,
        "short_taps": short_taps,
        "inner_factor": inner_factor,
    }
    check_counts(**counts, order=order)
    check_flags(**flags)
    if order > MAX_ORDER:
        raise ValueError(
            f"order must be 1 to {MAX_ORDER}, got {order}: beyond that the product of {order + 1} activations leaves "
            "half precision's range; use more layers instead"
        )
    if isinstance(dropout, bool) or not isinstance(dropout, (int, float)) or not 0 <= dropout < 1:
        raise ValueError(f"dropout must be a number in [0, 1), got {dropout!r}")
    if order == 1 and dropout > 0:
        raise ValueError(
            f"dropout={dropout} drops products of the value and the gates before the last, of which order=1 has none: "
            "leave it 0, or use order=2 or more"
        )
    width = d_model * inner_factor
    if width % num_heads != 0:
        raise ValueError(f"the width {width} is not a multiple of num_heads={num_heads}")
    if filter_groups is not None:
        check_counts(filter_groups=filter_groups)
        if num_heads > 1:
            raise ValueError(
                f"num_heads={num_heads} already ties filters in heads; leave filter_groups={filter_groups} out"
            )
        if width % filter_groups != 0:
            raise ValueError(f"the width {width} is not a multiple of filter_groups={filter_groups}")


def check_counts(least: int = 1, /, **counts: int) -> None:
    """Raises for arguments that are no integers (``TypeError``) or below ``least`` (``ValueError``)."""
    for name, value in counts.items():
        if isinstance(value, bool) or not isinstance(value, (int, torch.SymInt)):
            raise TypeError(f"{name} must be an integer, got {value!r}")
        if value < least:
            raise ValueError(f"{name} must be at least {least}, got {value}")


def check_flags(**flags: bool) -> None:
    """Raises ``TypeError`` for arguments that are neither True nor False."""
    for name, value in flags.items():
        if not isinstance(value, bool):
            raise TypeError(f"{name} must be True or False, got {value!r}")


def heads_of(d_model: int, num_heads: int | None) -> int:
    """The number of heads: as asked for, or as many as have 64 channels, or one where 64 does not divide D.

    Raises:
        ValueError: it does not divide D.
    """
    if num_heads is None:
        num_heads = d_model // 64 if d_model % 64 == 0 else 1
    check_counts(d_model=d_model, num_heads=num_heads)
    if d_model % num_heads != 0:
        raise ValueError(f"d_model={d_model} is not a multiple of num_heads={num_heads}")
    return num_heads
