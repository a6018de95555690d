"""What filters that an FFN of sines generates have in common: where they compute, their first norm, their fused form.

Dimensions: K taps, E features, O outputs.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hyena import ops
from hyena.filters._initial import fill, whole
from hyena.filters.ffn import FilterLinear, SineFFN


def place_of(filter: nn.Module, ffn: nn.Module) -> tuple[torch.device, torch.dtype]:
    """Where the taps are computed, and in which dtype: the FFN's, at least float32."""
    weight = getattr(getattr(ffn, "out", None), "weight", None)
    if not isinstance(weight, Tensor):  # an FFN of the user's own, or a quantised layer
        weight = next(chain(ffn.parameters(), filter.parameters(), filter.buffers()), torch.empty(0))
    device = weight.device
    if weight.is_meta:  # offloaded, perhaps, until the layer is called; then buffers say where that will be
        device = next((t.device for t in chain(filter.buffers(), filter.parameters()) if not t.is_meta), device)
    return device, ops.compute_dtype(weight)


def scale_rows(ffn: Any, sample: Callable[[torch.device], tuple[Tensor, Tensor]], taps_each: float | Tensor) -> None:
    """Scales the last layer of ``ffn`` so that each of its outputs, under a window, has l2 norm 1 over all taps.

    The layers' weights are read, gathered if they are sharded; everything else is taken as it is at the start, whether
    or not it has been initialised yet.

    Args:
        ffn: layers ``hidden`` and ``out``.
        sample: features ``(K, E)`` at some of the taps, and the window there, ``(K, O)``.
        taps_each: for how many taps each of them stands; or each its own, ``(K, 1)``.
    """
    layers: list[Any] = [*ffn.hidden, ffn.out]
    if not all(isinstance(layer, nn.Linear) for layer in layers) or any(layer.weight.is_meta for layer in layers):
        return
    weights = [(whole(m.weight).float(), None if m.bias is None else whole(m.bias).float()) for m in layers]
    device = weights[-1][0].device
    with ops.without_autocast(device):
        x, window = sample(device)
        for weight, bias in weights[:-1]:
            x = torch.sin(ffn.initial_freq * F.linear(x, weight, bias))
        # Rows of norm 1 first: what an uninitialised layer did to them is undone when it is initialised.
        rows = F.normalize(weights[-1][0], dim=1, eps=1e-30)
        h = F.linear(x, rows) * window
    each = taps_each.to(device) if isinstance(taps_each, Tensor) else taps_each
    norm = (h.square() * each).sum(0).sqrt().nan_to_num(1.0).clamp(1e-12, 1e12)
    fill(ffn.out.weight, (rows / norm[:, None]).to(ffn.out.weight.dtype))


def plain_weights(ffn: nn.Module, device: torch.device, dtype: torch.dtype) -> tuple[list, Tensor, Tensor] | None:
    """Hidden layers, frequency and last layer of an FFN that ``ops.implicit_filter`` computes here; None of any other.

    It is two to three times as fast in training as the modules.
    """
    if not ops.has_kernel("implicit_filter", device) or not ops.is_plain(ffn, SineFFN):
        return None
    layers: list[Any] = [*ffn.hidden, ffn.out]
    if not all(ops.is_plain(layer, FilterLinear) for layer in layers):
        return None
    *hidden, out = layers
    if out.bias is not None or any(layer.bias is None for layer in hidden):
        return None
    weights = [(layer.weight.to(dtype), layer.bias.to(dtype)) for layer in hidden]
    return weights, ffn.freq.to(dtype), out.weight.to(dtype)
