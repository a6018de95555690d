"""What a conversion is told, checked before anything is computed."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

STARTS = ("attention", "filters", "random")
OBJECTIVES = ("kl", "mse")


@dataclasses.dataclass(frozen=True)
class Settings:
    """See :func:`hyena.convert`; ``evaluate`` is how many batches are held out, 0 where the caller gives them."""

    layer_steps: int
    logit_steps: int
    keep: tuple[int, ...]
    keep_worst: int
    start: str | None
    evaluate: int
    start_batches: int
    lr: float
    logit_lr: float
    weight_decay: float
    temperature: float
    label_weight: float
    objective: str
    save_every: int = 100

    def __post_init__(self) -> None:
        """Checks each value.

        Raises:
            TypeError: something else than numbers.
            ValueError: a value out of range, with what would do.
        """
        for name in ("layer_steps", "logit_steps", "keep_worst", "evaluate", "start_batches", "save_every"):
            value, least = getattr(self, name), 1 if name in ("start_batches", "save_every") else 0
            if isinstance(value, bool) or not isinstance(value, int):
                raise TypeError(f"{name} must be an integer, got {value!r}")
            if value < least:
                raise ValueError(f"{name} must be at least {least}, got {value}")
        if self.layer_steps + self.logit_steps == 0:
            raise ValueError("layer_steps=0 and logit_steps=0: nothing would be trained")
        for name in ("lr", "logit_lr", "weight_decay", "temperature", "label_weight"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                raise TypeError(f"{name} must be a number, got {value!r}")
            if not 0 <= value < math.inf:
                raise ValueError(f"{name} must be finite and not negative, got {value}")
        if self.temperature == 0:
            raise ValueError(f"temperature must be positive, got {self.temperature}")
        if self.label_weight > 1:
            raise ValueError(f"label_weight must be 0 (no labels) to 1 (labels alone), got {self.label_weight}")
        if self.start is not None and self.start not in STARTS:
            raise ValueError(f"start must be None or one of {', '.join(map(repr, STARTS))}, got {self.start!r}")
        if self.objective not in OBJECTIVES:
            raise ValueError(f"objective must be one of {', '.join(map(repr, OBJECTIVES))}, got {self.objective!r}")

    def check_layers(self, count: int) -> None:
        """Checks what is kept, against how many layers there are.

        Raises:
            TypeError: indices that are no integers.
            ValueError: indices out of range or given twice, or nothing left to convert.
        """
        wrong = [i for i in self.keep if isinstance(i, bool) or not isinstance(i, int)]
        if wrong:
            raise TypeError(f"keep must hold indices of layers, got {wrong[0]!r}")
        outside = [i for i in self.keep if not 0 <= i < count]
        if outside:
            raise ValueError(f"keep={list(self.keep)} has {outside[0]}, and the model's layers are 0 to {count - 1}")
        if len(set(self.keep)) < len(self.keep):
            raise ValueError(f"keep={list(self.keep)} has a layer twice")
        staying = len(self.keep) + self.keep_worst
        if staying >= count:
            raise ValueError(
                f"keep={list(self.keep)} and keep_worst={self.keep_worst} keep {staying} of {count} layers: nothing "
                "would be converted"
            )

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {**dataclasses.asdict(self), "keep": list(self.keep)}


def schedule(step: int, steps: int) -> float:
    """What learning rates are multiplied by in ``step`` (from 0): a linear rise, then a cosine from 1 to 0.1."""
    rise = steps // 20
    if step < rise:
        return (step + 1) / (rise + 1)
    return 0.1 + 0.45 * (1 + math.cos(math.pi * (step - rise) / max(1, steps - rise)))
