"""What a :class:`hyena.HyenaOperator` may be made from: its activations, and numbers that fit together."""

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
    d_model: int,
    l_max: int,
    order: int,
    num_heads: int,
    short_filter_order: int,
    dropout: float,
    filter_groups: int | None,
    inner_factor: int,
    num_blocks: int,
) -> None:
    """Raises ``ValueError`` for numbers that do not fit together, with what would."""
    counts = {
        "d_model": d_model,
        "l_max": l_max,
        "num_heads": num_heads,
        "short_filter_order": short_filter_order,
        "inner_factor": inner_factor,
        "num_blocks": num_blocks,
    }
    for name, value in counts.items():
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    if not 1 <= order <= MAX_ORDER:
        raise ValueError(
            f"order must be 1 to {MAX_ORDER}, got {order}: beyond that the product of {order + 1} activations leaves "
            "half precision's range; use more layers instead"
        )
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout must lie in [0, 1), got {dropout}")
    width = d_model * inner_factor
    if width % num_heads != 0:
        raise ValueError(f"the width {width} is not a multiple of num_heads={num_heads}")
    if l_max % num_blocks != 0:
        raise ValueError(f"l_max={l_max} is not a multiple of num_blocks={num_blocks}")
    if filter_groups is not None:
        if num_heads > 1:
            raise ValueError(
                f"num_heads={num_heads} already ties filters in heads; leave filter_groups={filter_groups} out"
            )
        if filter_groups < 1 or width % filter_groups != 0:
            raise ValueError(f"the width {width} is not a multiple of filter_groups={filter_groups}")
