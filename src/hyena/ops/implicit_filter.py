"""``hyena::implicit_filter``: the taps of implicit long filters, an FFN with sines under an exponential window.

``h = W_out sin(freq (W … sin(freq (W_first features + b_0)) … + b)) (exp(-t |delta|) + shift)`` (arXiv 2302.10866,
eq. 7). The backward pass computes the layers again instead of keeping them.

Dimensions: K taps, E features, H width, n inner layers, F filters, C channels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from hyena.ops._library import define


def _hidden_layers(
    features: Tensor, first: Tensor, inner: Tensor, biases: Tensor, freq: Tensor
) -> tuple[list[Tensor], list[Tensor]]:
    """Inputs of the hidden layers, (K, E) or (K, H), and of the output layer; results of the former before the sine."""
    inputs, results = [features], []
    for weight, bias in zip([first, *inner], biases, strict=True):
        results.append(F.linear(inputs[-1], weight, bias))
        inputs.append(torch.sin(freq * results[-1]))
    return inputs, results


def _implicit_filter(
    features: Tensor,
    time: Tensor,
    first: Tensor,
    inner: Tensor,
    biases: Tensor,
    freq: Tensor,
    out: Tensor,
    deltas: Tensor,
    shift: float,
    filters: int,
) -> Tensor:
    inputs, _ = _hidden_layers(features, first, inner, biases, freq)
    h = F.linear(inputs[-1], out) * (torch.exp(torch.outer(-time, deltas.abs())) + shift)
    return h.view(h.size(0), filters, -1).transpose(0, 1).contiguous()


def _implicit_filter_backward(
    dh: Tensor,
    features: Tensor,
    time: Tensor,
    first: Tensor,
    inner: Tensor,
    biases: Tensor,
    freq: Tensor,
    out: Tensor,
    deltas: Tensor,
    shift: float,
    every: bool,
) -> tuple[Tensor, ...]:
    inputs, results = _hidden_layers(features, first, inner, biases, freq)
    g = dh.transpose(0, 1).reshape(time.size(0), -1)
    decay = torch.exp(torch.outer(-time, deltas.abs()))
    if every:
        slope = -g * F.linear(inputs[-1], out) * decay
        dtime, ddeltas = slope @ deltas.abs(), (time @ slope) * deltas.sgn()
    else:
        dtime, ddeltas = time.new_zeros(0), deltas.new_zeros(0)
    g = g * (decay + shift)
    dout, dx = g.t() @ inputs[-1], g @ out
    weights, dweights, dbiases, dfreq = [first, *inner], [], [], torch.zeros_like(freq)
    for i in reversed(range(len(weights))):
        slope = dx * torch.cos(freq * results[i])
        dfreq = dfreq + (slope * results[i]).sum(0)
        slope = slope * freq
        dbiases.append(slope.sum(0))
        dweights.append(slope.t() @ inputs[i])
        if i > 0 or every:
            dx = slope @ weights[i]
    dinner = torch.stack(dweights[-2::-1]) if len(weights) > 1 else torch.zeros_like(inner)
    dfeatures = dx if every else features.new_zeros(0)
    return dfeatures, dtime, dweights[-1], dinner, torch.stack(dbiases[::-1]), dfreq, dout, ddeltas


def _backward(inputs: Sequence, grads: Sequence[Tensor | None], needs: Sequence[bool]) -> tuple:
    # Features, time and the window seldom are trained: the window's gradient takes another product with the taps.
    every = needs[0] or needs[1] or needs[7]
    found = torch.ops.hyena.implicit_filter_backward(grads[0], *inputs[:-1], every)
    return (*found, None, None)


_TENSORS = (
    "Tensor features, Tensor time, Tensor first, Tensor inner, Tensor biases, Tensor freq, Tensor out, Tensor deltas"
)

define(
    f"implicit_filter({_TENSORS}, float shift, SymInt filters) -> Tensor",
    _implicit_filter,
    lambda features, time, first, inner, biases, freq, out, deltas, shift, filters: features.new_empty(
        filters, features.size(0), out.size(0) // filters
    ),
    backward=_backward,
)
define(
    f"implicit_filter_backward(Tensor dh, {_TENSORS}, float shift, bool every)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    _implicit_filter_backward,
    lambda dh, features, time, first, inner, biases, freq, out, deltas, shift, every: (
        features.new_empty(features.shape if every else 0),
        time.new_empty(time.shape if every else 0),
        *(t.new_empty(t.shape) for t in (first, inner, biases, freq, out)),
        deltas.new_empty(deltas.shape if every else 0),
    ),
)


def implicit_filter(
    features: Tensor,
    time: Tensor,
    layers: Sequence[tuple[Tensor, Tensor]],
    freq: Tensor,
    out: Tensor,
    deltas: Tensor,
    shift: float = 0.0,
    filters: int = 1,
) -> Tensor:
    """Taps of ``F`` implicit filters.

    ``for w, b in layers: x = sin(freq * F.linear(x, w, b))``, then ``F.linear(x, out) * (exp(-t |deltas|) + shift)``

    Args:
        features: ``(K, E)``, float32 or float64, as everything else.
        time: ``(K,)``.
        layers: weight and bias of each hidden layer: ``(H, E)`` and ``(H,)``, then ``(H, H)`` and ``(H,)``.
        freq: ``(H,)``.
        out: ``(F C, H)``.
        deltas: ``(F C,)``.
        shift: what the window decays to.
        filters: F.

    Returns:
        ``(F, K, C)``.

    Raises:
        ValueError: shapes or dtypes that do not fit, with the ones found.
    """
    if features.dim() != 2 or features.dtype not in (torch.float32, torch.float64):
        raise ValueError(
            f"features must be float32 or float64 of shape (K, E), got {features.dtype} of shape "
            f"{tuple(features.shape)}"
        )
    width = freq.size(0)
    want = {"time": (time, (features.size(0),)), "freq": (freq, (width,)), "out": (out, (out.size(0), width))}
    want["deltas"] = deltas, (out.size(0),)
    for i, (weight, bias) in enumerate(layers):
        want[f"weight {i}"] = weight, (width, width if i > 0 else features.size(1))
        want[f"bias {i}"] = bias, (width,)
    for name, (t, shape) in want.items():
        if t.shape != shape or t.dtype != features.dtype or t.device != features.device:
            raise ValueError(
                f"{name} must be {features.dtype} of shape {shape} on {features.device}, got {t.dtype} of shape "
                f"{tuple(t.shape)} on {t.device}"
            )
    if not layers or filters < 1 or out.size(0) % filters != 0:
        raise ValueError(
            f"need at least one hidden layer and {out.size(0)} outputs to be a multiple of {filters} filters"
        )
    inner = torch.stack([w for w, _ in layers[1:]]) if len(layers) > 1 else freq.new_zeros(0, width, width)
    biases = torch.stack([b for _, b in layers])
    return torch.ops.hyena.implicit_filter(
        features, time, layers[0][0], inner, biases, freq, out, deltas, shift, filters
    )
