"""``hyena::implicit_filter``: the taps of implicit long filters, an FFN with sines under an exponential window.

``h = W_out sin(freq (W … sin(freq (W_first features + b_0)) … + b)) (exp(-t |delta|) + shift)`` (arXiv 2302.10866,
eq. 7). The backward pass computes the layers again instead of keeping them.

Dimensions: K taps, E features, H width, n inner layers, F filters, C channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from hyena.ops._checks import check_like
from hyena.ops._derivatives import Arguments, backward_through
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


class Inputs(NamedTuple):
    """The arguments of ``hyena::implicit_filter``.

    The hidden layers after the first have weights of one shape, and come as one tensor, with the biases of all layers
    in another: a schema has no list of layers that differ in shape, and a kernel reads two arrays.
    """

    features: Tensor
    time: Tensor
    first: Tensor
    inner: Tensor
    biases: Tensor
    freq: Tensor
    out: Tensor
    deltas: Tensor
    shift: float
    filters: int


def _check_features(f: Tensor) -> None:
    if f.dim() != 2 or f.dtype not in (torch.float32, torch.float64) or f.layout != torch.strided:
        raise ValueError(
            f"features must be float32 or float64 of shape (K, E), got {f.dtype} of shape {tuple(f.shape)}"
        )


def _check(*args: Any) -> None:
    a = Inputs(*args)
    f = a.features
    _check_features(f)
    if a.freq.dim() != 1 or a.inner.dim() != 3 or a.out.dim() != 2:
        raise ValueError(
            "freq must be (H,), inner (n, H, H) and out (F C, H), got "
            f"{tuple(a.freq.shape)}, {tuple(a.inner.shape)} and {tuple(a.out.shape)}"
        )
    width, layers = a.freq.size(0), a.inner.size(0)
    check_like("time", a.time, (f.size(0),), f)
    check_like("first", a.first, (width, f.size(1)), f)
    check_like("inner", a.inner, (layers, width, width), f)
    check_like("biases", a.biases, (layers + 1, width), f)
    check_like("freq", a.freq, (width,), f)
    check_like("out", a.out, (a.out.size(0), width), f)
    check_like("deltas", a.deltas, (a.out.size(0),), f)
    if a.filters < 1 or a.out.size(0) % a.filters != 0:
        raise ValueError(f"filters: {a.out.size(0)} outputs are not a multiple of {a.filters} filters")


def _check_backward(dh: Tensor, *args: Any) -> None:
    # In place of the number of filters comes with_inputs.
    if dh.dim() != 3 or dh.size(0) < 1:
        raise ValueError(f"dh must be (F, K, C), got {tuple(dh.shape)}")
    a = Inputs._make((*args[:-1], dh.size(0)))
    _check(*a)
    check_like("dh", dh, (dh.size(0), a.features.size(0), a.out.size(0) // dh.size(0)), a.features)


def _implicit_filter(*args: Any) -> Tensor:
    a = Inputs(*args)
    inputs, _ = _hidden_layers(a.features, a.first, a.inner, a.biases, a.freq)
    h = F.linear(inputs[-1], a.out) * (torch.exp(torch.outer(-a.time, a.deltas.abs())) + a.shift)
    return h.view(h.size(0), a.filters, h.size(1) // a.filters).transpose(0, 1).contiguous()


def _implicit_filter_backward(dh: Tensor, *args: Any) -> tuple[Tensor, ...]:
    with_inputs = args[-1]  # also gradients of features, time and deltas
    a = Inputs._make((*args[:-1], 0))
    inputs, results = _hidden_layers(a.features, a.first, a.inner, a.biases, a.freq)
    g = dh.transpose(0, 1).flatten(1)
    decay = torch.exp(torch.outer(-a.time, a.deltas.abs()))
    if with_inputs:
        slope = -g * F.linear(inputs[-1], a.out) * decay
        dtime, ddeltas = slope @ a.deltas.abs(), (a.time @ slope) * a.deltas.sgn()
    else:
        dtime, ddeltas = a.time.new_zeros(0), a.deltas.new_zeros(0)
    g = g * (decay + a.shift)
    dout, dx = g.t() @ inputs[-1], g @ a.out
    weights, dweights, dbiases, dfreq = [a.first, *a.inner], [], [], torch.zeros_like(a.freq)
    for i in reversed(range(len(weights))):
        slope = dx * torch.cos(a.freq * results[i])
        dfreq = dfreq + (slope * results[i]).sum(0)
        slope = slope * a.freq
        dbiases.append(slope.sum(0))
        dweights.append(slope.t() @ inputs[i])
        if i > 0 or with_inputs:
            dx = slope @ weights[i]
    dinner = torch.stack(dweights[-2::-1]) if len(weights) > 1 else torch.zeros_like(a.inner)
    dfeatures = dx if with_inputs else a.features.new_zeros(0)
    return dfeatures, dtime, dweights[-1], dinner, torch.stack(dbiases[::-1]), dfreq, dout, ddeltas


def _fake(*args: Any) -> Tensor:
    a = Inputs(*args)
    return a.features.new_empty(a.filters, a.features.size(0), a.out.size(0) // a.filters)


def _fake_backward(dh: Tensor, *args: Any) -> tuple[Tensor, ...]:
    a, with_inputs = Inputs._make((*args[:-1], 0)), args[-1]
    return (
        a.features.new_empty(a.features.shape if with_inputs else 0),
        a.time.new_empty(a.time.shape if with_inputs else 0),
        *(t.new_empty(t.shape) for t in (a.first, a.inner, a.biases, a.freq, a.out)),
        a.deltas.new_empty(a.deltas.shape if with_inputs else 0),
    )


def _backward(inputs: Arguments, grads: Arguments, needs: Arguments) -> tuple[Tensor | None, ...]:
    a = Inputs(*inputs)
    # Features, time and the window seldom are trained: the window's gradient takes another product with the taps.
    with_inputs = needs[0] or needs[1] or needs[7]
    found = torch.ops.hyena.implicit_filter_backward(grads[0], *a[:-1], with_inputs)
    return (*found, None, None)


_TENSORS = (
    "Tensor features, Tensor time, Tensor first, Tensor inner, Tensor biases, Tensor freq, Tensor out, Tensor deltas"
)
define(
    f"implicit_filter({_TENSORS}, float shift, SymInt filters) -> Tensor",
    _implicit_filter,
    _fake,
    check=_check,
    backward=_backward,
    plain=_implicit_filter,
)
define(
    f"implicit_filter_backward(Tensor dh, {_TENSORS}, float shift, bool every)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    _implicit_filter_backward,
    _fake_backward,
    check=_check_backward,
    backward=backward_through(_implicit_filter_backward),
    plain=_implicit_filter_backward,
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
    if not layers:
        raise ValueError("layers: need at least one hidden layer, got none")
    _check_features(features)
    if freq.dim() != 1:
        raise ValueError(f"freq must be (H,), got {tuple(freq.shape)}")
    width = freq.size(0)
    for i, (weight, bias) in enumerate(layers):
        check_like(f"weight {i}", weight, (width, width if i > 0 else features.size(1)), features)
        check_like(f"bias {i}", bias, (width,), features)
    inner = torch.stack([w for w, _ in layers[1:]]) if len(layers) > 1 else freq.new_zeros(0, width, width)
    biases = torch.stack([b for _, b in layers])
    a = Inputs(features, time, layers[0][0], inner, biases, freq, out, deltas, shift, filters)
    _check(*a)
    return torch.ops.hyena.implicit_filter(*a)
