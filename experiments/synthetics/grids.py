"""Which runs of the synthetic tasks there are, at each size: a run is a dict of all its settings."""

from __future__ import annotations

import itertools
from typing import Any

from experiments.shared.runs import Settings

BOTH = ("hyena", "attention")

SETUP: dict[str, Any] = {
    "layers": 2,
    "width": 64,
    "d_inner": 128,
    "batch": 64,
    "lr": 3e-3,
    "weight_decay": 0.1,
}
DEFAULT_RATES = {"attention": 1e-3}  # which begins later, or not, at the rate of the others


def default_runs() -> list[Settings]:
    """Minutes of a core: every task once, addition by digits and depth, multi-query recall by width."""
    found: list[Settings] = []
    for width in (32, 64, 128):
        options = {"length": 64, "pairs": 4, "vocabulary": 64}
        models = BOTH if width < 128 else ("hyena",)
        more = {"width": width, "d_inner": 2 * width, "batch": 32}
        found += _runs("multi-query recall", models, options, examples=100_000, steps=4000, **more)
    found += _runs("majority", BOTH, {"length": 32, "letters": 10}, examples=2000, steps=1500)
    found += _runs("counting", BOTH, {"length": 32, "letters": 5, "most": 10}, examples=2000, steps=3000)
    found += _runs("induction", BOTH, {"length": 32, "letters": 18}, examples=5000, steps=2500)
    for digits, layers in itertools.product((4, 8), (1, 2)):
        models = BOTH if layers == 1 else ("hyena",)
        found += _runs("addition", models, {"digits": digits}, examples=100_000, steps=6000, layers=layers)
    found += _runs("linear functions", BOTH, {"dimension": 3, "pairs": 12}, examples=100_000, steps=2000)
    return [{**run, "lr": DEFAULT_RATES.get(run["model"], run["lr"])} for run in found]


def full_runs() -> list[Settings]:
    """Figure C.1's digits and depths, the published lengths, and Zoology's lengths, pairs and widths."""
    long: dict[str, Any] = {"batch": 32, "lr": 5e-4, "d_inner": 256}
    found: list[Settings] = []
    for length in (1024, 8192, 65536):
        found += _runs("majority", BOTH, {"length": length, "letters": 10}, examples=2000, steps=12_500, **long)
        options = {"length": length, "letters": 10, "most": 100}
        found += _runs("counting", BOTH, options, examples=2000, steps=12_500, **long)
    models = (*BOTH, "h3", "gss", "hyena/s4d")
    for length in (40, 1024):
        found += _runs("induction", models, {"length": length, "letters": 18}, examples=5000, steps=62_500, **long)
    for digits, layers in itertools.product((2, 4, 8, 16), (1, 2, 3)):
        found += _runs("addition", BOTH, {"digits": digits}, examples=400_000, steps=50_000, layers=layers, **long)
    for dimension, pairs in ((5, 21), (20, 41)):
        options = {"dimension": dimension, "pairs": pairs}
        found += _runs("linear functions", BOTH, options, examples=1_000_000, steps=100_000, **long)
    for (length, pairs), width in itertools.product(((64, 4), (128, 8), (256, 16), (512, 64)), (64, 128, 256, 512)):
        options = {"length": length, "pairs": pairs, "vocabulary": 8192}
        more = {"batch": 256 if length < 512 else 128, "d_inner": 4 * width, "lr": 1e-3}
        found += _runs(
            "multi-query recall", (*BOTH, "h3"), options, examples=100_000, steps=25_000, width=width, **more
        )
    return found


def toy_runs() -> list[Settings]:
    """Each task at a size that shows whether it runs."""
    small: dict[str, Any] = {
        "width": 16,
        "d_inner": 16,
        "layers": 1,
        "examples": 256,
        "batch": 32,
        "steps": 80,
        "lr": 5e-3,
    }
    one = ("hyena",)
    return [
        *_runs("majority", BOTH, {"length": 8, "letters": 4}, **small),
        *_runs("counting", one, {"length": 8, "letters": 3, "most": 4}, **small),
        *_runs("induction", one, {"length": 8, "letters": 4}, **small),
        *_runs("addition", one, {"digits": 2}, **small),
        *_runs("linear functions", BOTH, {"dimension": 2, "pairs": 4}, **small),
        *_runs("multi-query recall", one, {"length": 16, "pairs": 2, "vocabulary": 16}, **small),
    ]


def grid(size: str, seeds: list[int]) -> list[Settings]:
    """The runs of a size, seed by seed."""
    runs = {"toy": toy_runs, "default": default_runs, "full": full_runs}[size]()
    return [{**settings, "seed": seed} for seed in seeds for settings in runs]


def _runs(task: str, models: tuple[str, ...], options: dict[str, int], **changed: Any) -> list[Settings]:
    """A task at one size, for each model."""
    return [{"task": task, "model": model, "options": options, **SETUP, **changed} for model in models]
