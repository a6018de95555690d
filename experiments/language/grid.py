"""The settings of every run."""

from __future__ import annotations

from typing import Any

from experiments.language import texts
from experiments.language.models import MODELS
from experiments.shared.runs import Settings

SMALL = {"length": 256, "width": 96, "layers": 4, "heads": 4, "dropout": 0.0}
SIZES: dict[str, dict[str, dict[str, Any]]] = {
    "toy": {
        text: {"limit": 3000, "length": 32, "width": 16, "layers": 4, "heads": 2, "dropout": 0.0}
        | {"rows": 4, "steps": 12, "lr": 4e-3}
        for text in ("shakespeare", "wikitext-2")
    },
    "default": {text: SMALL | {"rows": 4, "steps": 600, "lr": 3e-3} for text in ("shakespeare", "wikitext-2")},
    "full": {
        text: {"length": 256, "width": 384, "layers": 6, "heads": 6, "dropout": 0.2}
        | {"rows": 64, "steps": 5000, "lr": 1e-3}
        for text in ("shakespeare", "wikitext-2")
    }
    | {
        "wikitext-103": {"length": 1024, "width": 768, "layers": 12, "heads": 12, "dropout": 0.1}
        | {"rows": 512, "rows_at_once": 32, "steps": 22000, "lr": 6e-4}
    },
}
# Hybrids of WikiText-2 are left to the full size.
FEWER = {
    ("toy", "wikitext-2"): ("hyena", "attention"),
    ("default", "wikitext-2"): ("hyena", "h3", "attention", "attention-rotary"),
}
ROUNDS = {"toy": 2, "default": 12, "full": 12}  # of timed steps


def grid(size: str, seeds: list[int]) -> list[Settings]:
    """Every run of a size."""
    found: list[Settings] = []
    for text, numbers in SIZES[size].items():
        if text == "wikitext-103" and not texts.WIKITEXT_103.exists():
            print(f"without {text}: there is no {texts.WIKITEXT_103} with train.txt and test.txt")
            continue
        read = {"text": text} | ({"limit": numbers["limit"]} if "limit" in numbers else {})
        found.append({"part": "n-grams", **read})
        found.append({"part": "speed", "rounds": ROUNDS[size], **read, **numbers})
        found += [
            {"part": "train", **read, "model": model, "seed": seed, **numbers}
            for seed in seeds
            for model in FEWER.get((size, text), tuple(MODELS))
        ]
    return found
