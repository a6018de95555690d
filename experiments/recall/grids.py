"""Which runs of recall there are, at each size: a run is a dict of all its settings."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Any

from experiments.shared.models import FILTERS
from experiments.shared.runs import Settings

FILTER_MODELS = [f"hyena/{name}" for name in FILTERS]
MODELS = ["hyena", "attention", "h3", "aft-conv", "gss", *FILTER_MODELS]

VOCABULARIES = [10, 20, 30, 40]

# Of table A.1 of arXiv 2302.10866, whatever the size.
PUBLISHED_SETUP: dict[str, Any] = {
    "width": 64,
    "layers": 2,
    "d_inner": 256,
    "examples": 2000,
    "batch": 32,
    "epochs": 200,
    "warmup": 10,
    "lr": 5e-4,
    "weight_decay": 0.1,
}

# Two cores have no time for 200 epochs: fewer, at a higher learning rate, and a smaller MLP. A run stops when the task
# is solved.
DEFAULT_SETUP = {**PUBLISHED_SETUP, "d_inner": 128, "epochs": 30, "warmup": 1, "lr": 4e-3}

TOY_SETUP = {
    **PUBLISHED_SETUP,
    "width": 16,
    "layers": 1,
    "d_inner": 16,
    "examples": 64,
    "batch": 8,
    "epochs": 4,
    "warmup": 1,
}

# Rows of this length say four times as much about every key as rows of 128, and are learned, not memorised: at a lower
# rate, and with time for it.
LONG_ROWS = 512
LONG_SETUP = {**DEFAULT_SETUP, "epochs": 40, "lr": 3e-3}

# Attention learns nothing in so few epochs at the rate that is good for the others.
DEFAULT_RATES = {"attention": 1e-3}

Cell = tuple[str, int, int]  # model, vocabulary, length


def cells(models: Iterable[str], vocabularies: Iterable[int], lengths: Iterable[int]) -> list[Cell]:
    """Every model on every vocabulary and length."""
    return [(m, v, n) for n, v, m in itertools.product(lengths, vocabularies, models)]


def default_cells() -> list[Cell]:
    """Every model by vocabulary in rows of 128, and by length at vocabulary 30; what matters most is first."""
    return [
        *cells(["hyena"], [10, 20, 40], [512]),
        *cells(MODELS, [30], [512, 128]),
        *cells(MODELS, [10, 20, 40], [128]),
        *cells(MODELS, [30], [256, 1024]),
        *cells(["hyena", "attention"], [10], [256]),
        *cells(["hyena"], [10], [1024]),
    ]


def default_setup(cell: Cell) -> dict[str, Any]:
    """The setup of a cell of the default size."""
    model, _, length = cell
    setup = LONG_SETUP if length >= LONG_ROWS else DEFAULT_SETUP
    return {**setup, "lr": DEFAULT_RATES.get(model, setup["lr"])}


def full_cells() -> list[Cell]:
    """Table C.1, figure 4.1, table 4.2 and table A.2, shortest first; attention as far as it was published."""
    operators = [m for m in MODELS if m not in FILTER_MODELS]
    found = [
        *cells(["hyena", "attention", "h3", "aft-conv", "hyena/conv1d"], VOCABULARIES, [2048]),
        *cells(["hyena", *FILTER_MODELS], VOCABULARIES, [128, 512, 2048, 8192, 32768]),
        *cells(operators, [30], [1024, 32768]),
        *cells(operators, [30], [65536]),
        *cells([m for m in operators if m != "attention"], [30], [131072]),
        *cells(["hyena", *FILTER_MODELS], [30], [131072]),
    ]
    return sorted(dict.fromkeys(found), key=lambda cell: cell[2])


def grid(size: str, seeds: list[int]) -> list[Settings]:
    """The runs of a size, seed by seed, so that what is there first is a whole look."""
    chosen: list[tuple[Cell, dict[str, Any]]] = {
        "toy": [(cell, TOY_SETUP) for cell in cells(["hyena", "hyena/conv1d"], [6], [64])],
        "default": [(cell, default_setup(cell)) for cell in default_cells()],
        "full": [(cell, PUBLISHED_SETUP) for cell in full_cells()],
    }[size]
    return [
        {"model": model, "vocabulary": vocabulary, "length": length, **setup, "seed": seed}
        for seed in seeds
        for (model, vocabulary, length), setup in chosen
    ]
