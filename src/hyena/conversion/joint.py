"""The second stage: all layers together, on what the attention model says and on the true labels."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from hyena.conversion.layers import Layer, counted
from hyena.conversion.measure import distance, evaluating
from hyena.conversion.optimizer import Optimizer
from hyena.conversion.outputs import Forward, kept, outcome
from hyena.conversion.settings import Settings


class Joint:
    """Trains a model to give the attention model's outputs, one batch at a time.

    Args:
        student: the model with replacements.
        teacher: the model with attention, whose weights nobody changes.
        layers: that were replaced.
        forward: see :func:`hyena.convert`.
        settings: temperature, weight of the labels and objective.
        optimizer: of the student's parameters.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        layers: list[Layer],
        forward: Forward | None,
        settings: Settings,
        optimizer: Optimizer,
    ) -> None:
        self.student, self.teacher, self.layers, self.forward = student, teacher, layers, forward
        self.settings, self.optimizer = settings, optimizer

    def step(self, batch: Any) -> tuple[float, int]:
        """One step: the objective, and the positions of the batch."""
        s = self.settings
        with torch.no_grad(), evaluating(self.teacher):
            wanted = outcome(self.teacher, batch, self.forward).logits
        with counted(self.layers) as tokens:
            found = outcome(self.student, batch, self.forward)
        keep = kept(self.student, batch, wanted, self.forward)
        loss = wanted.new_zeros((), dtype=torch.promote_types(wanted.dtype, torch.float32))
        if s.label_weight < 1:
            loss = loss + (1 - s.label_weight) * distance(found.logits, wanted, keep, s.objective, s.temperature)
        if s.label_weight > 0:
            if found.loss is None:
                raise ValueError(no_labels(s.label_weight))
            loss = loss + s.label_weight * found.loss
        loss.backward()
        self.optimizer.step()
        return float(loss.detach()), tokens[0]


def no_labels(weight: float) -> str:
    """The message for a batch without labels."""
    return (
        f"label_weight={weight} mixes in the loss of true labels, and a batch has none: give labels (a pair (inputs, "
        "labels), or a dict with 'labels', or a model that returns its loss), or pass label_weight=0"
    )
