"""The first stage: every replacement learns what its attention computes, on the model's own activations.

Layers do not wait for each other: each gets the inputs that the attention model has there. So one pass of the model
teaches all of them, and each step holds the graph of one layer at a time.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from hyena.conversion.layers import Layer, positions, rows_of, watched
from hyena.conversion.measure import evaluating
from hyena.conversion.optimizer import Optimizer
from hyena.conversion.outputs import Forward, outcome, relative_error
from hyena.conversion.start import Diagonals, start_from, why_not
from hyena.conversion.values import Values, find_values


class Matching:
    """Trains replacements on batches, one at a time.

    Args:
        model: with attention; left as it is.
        layers: to train.
        forward: see :func:`hyena.convert`.
        optimizer: of the replacements' parameters.
    """

    def __init__(self, model: nn.Module, layers: list[Layer], forward: Forward | None, optimizer: Optimizer) -> None:
        self.model, self.layers, self.forward, self.optimizer = model, layers, forward, optimizer

    def step(self, batch: Any) -> tuple[float, int]:
        """One step of all layers: the mean of their relative errors, and the positions of the batch."""
        found: list[torch.Tensor] = []
        tokens = 0

        def teach(layer: Layer, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
            nonlocal tokens
            wanted = rows_of(layer, result).detach()
            with torch.enable_grad():
                y, u, mask = layer.call(args, kwargs)
                loss = relative_error(rows_of(layer, y), wanted, mask)
                loss.backward()
            found.append(loss.detach())
            if layer is self.layers[0]:
                tokens += positions(u, mask)

        parts = (layer.new for layer in self.layers)
        with evaluating(self.model, *parts), torch.no_grad(), watched(self.layers, teach):
            outcome(self.model, batch, self.forward)
        self.optimizer.step()
        return float(torch.stack(found).mean()), tokens


def begin(model: nn.Module, layers: list[Layer], batches: list[Any], forward: Forward | None, start: str) -> list[Any]:
    """Starts the replacements from the attention of ``model`` on some batches, where that can be done.

    Args:
        model: with attention; left as it is.
        layers: whose replacements are changed.
        batches: whose attention maps are averaged.
        forward: see :func:`hyena.convert`.
        start: "attention" or "filters".

    Returns:
        For each layer ``(start, note, filter_error)`` as in :class:`hyena.conversion.LayerReport`.
    """
    values: dict[int, Values | None] = {}
    diagonals = {layer.index: Diagonals() for layer in layers}
    reasons = {layer.index: why_not(layer.mixer) for layer in layers}

    def look(layer: Layer, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        i = layer.index
        if reasons[i] is not None:
            return
        if i not in values:
            values[i] = find_values(layer.sites[0], args, kwargs)
        found = values[i]
        if found is None:
            reasons[i] = f"how a {type(layer.old).__name__} makes its values is not found"
            return
        _, _, mask = layer.call(args, kwargs)
        for first, columns in found.attend(args, kwargs):
            diagonals[i].add(columns, first, mask)

    parts = (layer.new for layer in layers)
    with evaluating(model, *parts), torch.no_grad(), watched(layers, look):
        for batch in batches:
            outcome(model, batch, forward)
    begun: list[tuple[str, str, float | None]] = []
    for layer in layers:
        reason, found = reasons[layer.index], values.get(layer.index)
        if reason is None and found is not None:
            means, mixer = diagonals[layer.index].means(layer.mixer.causal), layer.mixer
            begins, note = start, ""
            if start == "attention" and found.weight.size(0) != mixer.width:
                begins = "filters"
                note = f"the values have {found.weight.size(0)} channels, and the mixer is {mixer.width} wide"
            begun.append((begins, note, start_from(mixer, found, means, projections=begins == "attention")))
        else:
            begun.append(("random", reason or "its attention was not called", None))
    return begun
