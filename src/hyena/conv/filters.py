"""The filters that a long convolution is built with: a module, or what makes one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn


def made_filter(filter: Any, num_filters: int, make: Callable[[Callable[..., Any]], Any]) -> nn.Module | None:
    """The module that ``filter`` is or makes; None for no filters.

    Args:
        filter: a module, or a class or function.
        num_filters: how many filters are needed.
        make: calls a class or function with the sizes that are needed.

    Raises:
        ValueError: ``filter`` is neither, or makes something else.
    """
    if num_filters == 0:
        return None
    if isinstance(filter, nn.Module):
        return filter
    if filter is None or not callable(filter):
        raise ValueError(
            f"filter must be a module, or a class or functools.partial that makes one, for {num_filters} "
            f"filters; got {filter!r}"
        )
    made = make(filter)
    if not isinstance(made, nn.Module):
        raise ValueError(f"filter={filter!r} made a {type(made).__name__}, and a module is needed")
    return made


def reset(filter: nn.Module | None, bias: nn.Parameter) -> None:
    """Initialises filters again, and the weight of the input itself."""
    reset_filter = getattr(filter, "reset_parameters", None)
    if reset_filter is not None:
        reset_filter()
    nn.init.normal_(bias)
