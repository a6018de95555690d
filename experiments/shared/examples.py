"""A fixed set of examples, trained on epoch by epoch; loss and accuracy where something is to be predicted.

Dimensions: N examples, B batch, L length, D channels, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from experiments.shared.training import generator
from hyena.models import CausalLM

IGNORED = -100  # a target of this value is not to be predicted


def steps_of_epoch(count: int, batch: int) -> int:
    """Batches of an epoch of ``count`` examples; the last may be smaller."""
    return math.ceil(count / batch)


def epochs(inputs: Tensor, targets: Tensor, batch: int, seed: int) -> Callable[[int], tuple[Tensor, Tensor]]:
    """What gives the batch of a step, counted from 0: each example once an epoch, in an order of the epoch's own.

    Args:
        inputs, targets: ``(N, …)``, on any device.
        batch: B.
        seed: of the orders.
    """
    count = inputs.size(0)
    each = steps_of_epoch(count, batch)

    def chosen(step: int) -> tuple[Tensor, Tensor]:
        order = torch.randperm(count, generator=generator(seed, step // each))
        at = order[step % each * batch : (step % each + 1) * batch].to(inputs.device)
        return inputs[at], targets[at]

    return chosen


def last_only(targets: Tensor) -> Tensor:
    """The same targets with all but each example's last one ignored, ``(N, L)``."""
    kept = torch.full_like(targets, IGNORED)
    kept[:, -1] = targets[:, -1]
    return kept


def loss(model: CausalLM, tokens: Tensor, targets: Tensor) -> Tensor:
    """The mean cross-entropy in nats over the targets that are not ignored; other positions get no logits."""
    kept = targets != IGNORED
    return F.cross_entropy(_logits(model, tokens, kept), targets[kept])


@torch.no_grad()
def accuracy(model: CausalLM, tokens: Tensor, targets: Tensor, batch: int = 64) -> dict[str, float]:
    """The shares of right predictions: ``accuracy`` of the targets, ``whole`` of the examples with all of them right.

    Args:
        model: in eval mode.
        tokens, targets: ``(N, L)``; a target that is ignored does not count.
        batch: examples at once.
    """
    right = kept = whole = 0
    for inputs, wanted in zip(tokens.split(batch), targets.split(batch)):
        asked = wanted != IGNORED
        wrong = torch.zeros_like(asked)
        wrong[asked] = _logits(model, inputs, asked).argmax(-1) != wanted[asked]
        kept += int(asked.sum())
        right += int((asked & ~wrong).sum())
        whole += int((~wrong.any(1)).sum())
    return {"accuracy": right / kept, "whole": whole / tokens.size(0)}


def _logits(model: CausalLM, tokens: Tensor, kept: Tensor) -> Tensor:
    """Logits of the kept positions alone, ``(number of them, V)``."""
    hidden = model.hidden_states(tokens)
    head = model.head
    return head(hidden if bool(kept.all()) else hidden[kept]).flatten(0, -2)
