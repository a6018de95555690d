"""What all filters refuse: counts of taps that are none, and arguments that are of another type or no number."""

from __future__ import annotations

import inspect
import math
import re
from typing import Any

import pytest
import torch

from helpers.filters import L_MAX, SETTINGS, build
from hyena import filters
from hyena.filters import S4ND, ExponentialWindow, ExponentialWindowND, FilterND, GaussianWindowND
from hyena.filters.base import Filter

# What is called with sizes, windows included, and the first arguments of each.
FIRST: dict[type, tuple[int, ...]] = {
    kind: (4, 40)
    for name in filters.__all__
    if isinstance(kind := getattr(filters, name), type)
    and issubclass(kind, (Filter, FilterND))
    and not inspect.isabstract(kind)
    and "filter" not in inspect.signature(kind).parameters
}
FIRST |= {ExponentialWindow: (4,), ExponentialWindowND: (4, 2), GaussianWindowND: (4, 2)}

# By the annotation of an argument, what it may not be. (A decay of infinity is a window of ones or zeros.)
WRONG: dict[str, tuple[Any, ...]] = {
    "bool": (0, 1, "x", None),
    "int": (1.5, True, "3", math.nan),
    "float": (math.nan, math.inf, True, "x"),
    "Sequence[float]": (1.5, (0.1,), (math.nan, 1.0), (0.1, "x"), (0.0, 1.0), (True, True), "ab"),
}
MAY_BE_INFINITE = {"slow_decay_pct", "fast_decay_pct"}


@pytest.mark.parametrize("kind", FIRST)
def test_arguments_of_another_kind(kind: type) -> None:
    """The error names the argument, and no filter is made that gives NaN."""
    for name, parameter in inspect.signature(kind).parameters.items():
        for value in WRONG.get(parameter.annotation.removesuffix(" | None"), ()):
            if parameter.default is inspect.Parameter.empty or (name in MAY_BE_INFINITE and value == math.inf):
                continue
            options = {name: value} | ({"version": "softmax"} if name == "epsilon" else {})
            with pytest.raises((TypeError, ValueError), match=rf"\b{name}\b") as raised:
                kind(*FIRST[kind], **options)
            assert re.search(rf" got .*{re.escape(str(value))}", str(raised.value))


@pytest.mark.parametrize(("name", "causal"), SETTINGS)
def test_counts_of_taps(name: str, causal: bool) -> None:
    filter = build(name, causal)
    for count in (1.5, True, "3", None, torch.tensor(3), [3]):
        with pytest.raises(TypeError, match=re.escape(f"called with a number of taps, an int, got {count!r}")):
            filter(count)
    for count, words in (
        (0, "at least one tap"),
        (-1, "at least one tap"),
        (L_MAX + 1, f"longer than .*l_max={L_MAX}"),
    ):
        with pytest.raises(ValueError, match=words):
            filter(count)


@pytest.mark.parametrize("make", [filters.HyenaFilterND, filters.FiLMFilterND, S4ND])
def test_sizes_of_grids(make: type[FilterND]) -> None:
    filter = make(4, (6, 5))
    for size in ((1.5, 2), (True, 2), ("3", 2), 3, "33", None):
        with pytest.raises(TypeError, match=re.escape(f"a number of positions for each axis, got {size!r}")):
            filter(size)
    for size in ((3,), (7, 5), (0, 5)):
        with pytest.raises(ValueError, match=r"has taps for grids of 1 to so many positions"):
            filter(size)
    assert filter(torch.Size((3, 2))).shape == filter([3, 2]).shape == (1, 5, 3, 4)
