"""Measurements on held-out batches: each layer against its attention, and the model against itself with attention."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from hyena.conversion.layers import Layer, positions, rows_of, substituted, watched
from hyena.conversion.outputs import Forward, divergence, kept, outcome, relative_error
from hyena.conversion.report import Losses


@contextmanager
def evaluating(*modules: nn.Module) -> Iterator[None]:
    """Eval mode, and afterwards for each part the mode that it had."""
    modes = {part: part.training for module in modules for part in module.modules()}
    try:
        for module in modules:
            module.eval()
        yield
    finally:
        for module in modules:
            if any(part.training != modes[part] for part in module.modules() if part in modes):
                _restore(module, modes)


def _restore(module: nn.Module, modes: dict[nn.Module, bool]) -> None:
    """Parts last, because a module's ``train`` sets its parts' too, and may do more than that."""
    for part in module.modules():
        if part in modes and part.training != modes[part]:
            part.train(modes[part])


def distance(student: Tensor, teacher: Tensor, keep: Tensor | None, objective: str, temperature: float = 1.0) -> Tensor:
    """How far outputs are from the attention model's, in terms of the objective."""
    if objective == "kl":
        return divergence(student, teacher, keep, temperature)
    return relative_error(student, teacher, keep)


class Evaluation:
    """Measurements on held-out batches.

    Args:
        batches: on the model's device.
        forward: see :func:`hyena.convert`.
        objective: "kl" or "mse".
    """

    def __init__(self, batches: list[Any], forward: Forward | None, objective: str) -> None:
        self.batches, self.forward, self.objective = batches, forward, objective

    def attention(self, model: nn.Module) -> Losses:
        """Of the model with attention."""
        with evaluating(model), torch.no_grad():
            return Losses(_mean([outcome(model, batch, self.forward).loss for batch in self.batches]), 0.0)

    def converted(self, model: nn.Module, teacher: nn.Module) -> Losses:
        """Of a converted model."""
        return self._compared(model, teacher, nullcontext)

    def swapped(self, model: nn.Module, layers: list[Layer]) -> Losses:
        """Of a model with attention, if it computed with these replacements."""
        with evaluating(*(layer.new for layer in layers)):
            return self._compared(model, model, lambda: substituted(layers))

    @torch.no_grad()
    def _compared(
        self, student: nn.Module, teacher: nn.Module, computing: Callable[[], AbstractContextManager[None]]
    ) -> Losses:
        losses, away = [], []
        with evaluating(student, teacher):
            for batch in self.batches:
                wanted = outcome(teacher, batch, self.forward).logits
                with computing():
                    found = outcome(student, batch, self.forward)
                losses.append(found.loss)
                keep = kept(student, batch, wanted, self.forward)
                away.append(distance(found.logits, wanted, keep, self.objective))
        return Losses(_mean(losses), float(torch.stack(away).double().mean()))

    @torch.no_grad()
    def errors(self, model: nn.Module, layers: list[Layer]) -> tuple[list[float], int]:
        """The relative squared error of each layer on the attention model's activations, and how many positions."""
        wrong, size = [0.0] * len(layers), [0.0] * len(layers)
        place = {id(layer): i for i, layer in enumerate(layers)}
        tokens = 0

        def compare(layer: Layer, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
            nonlocal tokens
            found, u, mask = layer.call(args, kwargs)
            y, wanted = rows_of(layer, found).double(), rows_of(layer, result).double()
            if mask is not None:
                y, wanted = y[mask], wanted[mask]
            i = place[id(layer)]
            wrong[i] += float((y - wanted).square().sum())
            size[i] += float(wanted.square().sum())
            tokens += positions(u, mask) if i == 0 else 0

        with evaluating(model, *(layer.new for layer in layers)), watched(layers, compare):
            for batch in self.batches:
                outcome(model, batch, self.forward)
        return [w / max(s, 1e-30) for w, s in zip(wrong, size, strict=True)], tokens


def _mean(losses: list[Tensor | None]) -> float | None:
    known = [float(loss) for loss in losses if loss is not None]
    return sum(known) / len(known) if known and len(known) == len(losses) else None
