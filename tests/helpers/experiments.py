"""What tests of experiments share."""

from __future__ import annotations

from typing import Any


def loss_falls(run: dict[str, Any]) -> bool:
    """Whether the training loss at the end of a run is below that at its first evaluation."""
    history = run["result"]["history"]
    return history[-1]["training_loss"] < history[0]["training_loss"]
