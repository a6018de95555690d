"""``hyena::project``, ``project_channel_major``, ``project_from_channel_major``: linear layers around the mixing step.

They are ``F.linear`` in every other respect. On the CPU the kernel of the first puts a long result into huge pages:
first use of small ones can take as long as the matrix product itself. Where torch's matrix products are slow (MKL on
processors that are not Intel's, see ``csrc/cpu/kernels/dispatch.cpp``) it also multiplies float32 and float64. The
other two write and read ``(B, L, C)`` in memory as ``(B, C, L)``, the order that a GPU's kernels want: the same matrix products
with other layout flags, forward and backward, where ``F.linear`` would copy.

Dimensions: B batch, L length, D channels in, C channels out.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hyena.ops._layout import is_channel_major, new_channel_major
from hyena.ops._library import define
from hyena.ops._modules import autocasts, has_plain_weights, is_hooked

# Fewer rows are not worth a kernel of the library's own (kLeastRows in csrc/cpu/binding/ops_linear.cpp).
_LEAST_ROWS = 256


def _backward(inputs: Sequence, grads: Sequence[Tensor | None], needs: Sequence[bool]) -> tuple:
    u, weight, _ = inputs
    g = grads[0]
    assert g is not None
    rows = g.flatten(0, 1)
    du = torch.ops.hyena.project(g, weight.t(), None) if needs[0] else None
    if needs[1] and _is_for_kernel(rows):
        dw, db = torch.ops.hyena.project_backward(g, u)
        return du, dw, db if needs[2] else None
    dw = rows.t() @ u.flatten(0, 1) if needs[1] else None
    db = rows.sum(0) if needs[2] else None
    return du, dw, db


def _is_for_kernel(rows: Tensor) -> bool:
    from hyena.ops._extension import EXTENSION  # which is loaded after the ops

    return (
        EXTENSION.fast_linear
        and rows.device.type == "cpu"
        and rows.dtype in (torch.float32, torch.float64)
        and rows.size(0) >= _LEAST_ROWS
    )


def _weight_and_bias(g: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    rows = g.flatten(0, 1)
    return rows.t() @ u.flatten(0, 1), rows.sum(0)


define(
    "project(Tensor u, Tensor weight, Tensor? bias) -> Tensor",
    F.linear,
    lambda u, weight, bias: u.new_empty(u.size(0), u.size(1), weight.size(0)),
    backward=_backward,
)


def _channel_major(u: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    rows, columns = weight.expand(u.size(0), -1, -1), u.transpose(1, 2)
    y = new_channel_major(u, u.size(0), u.size(1), weight.size(0))
    to = y.transpose(1, 2)
    if bias is None:
        torch.bmm(rows, columns, out=to)
    else:
        torch.baddbmm(bias[:, None], rows, columns, out=to)
    return y


def _channel_major_backward(inputs: Sequence, grads: Sequence[Tensor | None], needs: Sequence[bool]) -> tuple:
    u, weight, _ = inputs
    g = grads[0]
    assert g is not None
    du = torch.bmm(g, weight.expand(u.size(0), -1, -1)) if needs[0] else None
    return du, _weight_gradient(g, u) if needs[1] else None, g.sum((0, 1)) if needs[2] else None


def _from_channel_major(u: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    columns = weight.t().expand(u.size(0), -1, -1)
    return torch.bmm(u, columns) if bias is None else torch.baddbmm(bias, u, columns)


def _from_channel_major_backward(inputs: Sequence, grads: Sequence[Tensor | None], needs: Sequence[bool]) -> tuple:
    u, weight, _ = inputs
    g = grads[0]
    assert g is not None
    du = torch.ops.hyena.project_channel_major(g, weight.t(), None) if needs[0] else None
    return du, _weight_gradient(g, u) if needs[1] else None, g.sum((0, 1)) if needs[2] else None


def _weight_gradient(g: Tensor, u: Tensor) -> Tensor:
    # A product for each row of the batch, as it lies, and their sum. Short rows are put one after the other instead:
    # the products of all of them would take more memory than the copy.
    if g.size(1) >= g.size(2):
        return torch.bmm(g.transpose(1, 2), u).sum(0)
    return g.flatten(0, 1).t() @ u.flatten(0, 1)


define(
    "project_backward(Tensor g, Tensor u) -> (Tensor, Tensor)",
    _weight_and_bias,
    lambda g, u: (u.new_empty(g.size(2), u.size(2)), u.new_empty(g.size(2))),
)
define(
    "project_channel_major(Tensor u, Tensor weight, Tensor? bias) -> Tensor",
    _channel_major,
    lambda u, weight, bias: new_channel_major(u, u.size(0), u.size(1), weight.size(0)),
    backward=_channel_major_backward,
)
define(
    "project_from_channel_major(Tensor u, Tensor weight, Tensor? bias) -> Tensor",
    _from_channel_major,
    lambda u, weight, bias: u.new_empty(u.size(0), u.size(1), weight.size(0)),
    backward=_from_channel_major_backward,
)


def _operands(u: Tensor, layer: nn.Module, autocast: bool) -> tuple[Tensor, Tensor, Tensor | None] | None:
    """``u``, weight and bias for an op of this file; None where the layer had better be called.

    Whatever somebody put in a linear layer's place (an adapter, a quantised layer or weight), whatever hooks there are,
    and autocast work as they do for any layer.

    Args:
        u, layer: as in :func:`project`.
        autocast: whether an op may do what autocast would: ``u`` and weight come in its dtype then.
    """
    if type(layer) is not nn.Linear or is_hooked(layer) or not has_plain_weights(layer):
        return None
    weight: Tensor = layer.weight
    if autocasts(u.device):
        if not autocast or u.dtype == torch.float64:
            return None
        dtype = torch.get_autocast_dtype(u.device.type)
        u, weight = u.to(dtype), weight.to(dtype)
    if u.dtype != weight.dtype or u.size(-1) != layer.in_features:
        return None
    return u, weight, layer.bias


def project(u: Tensor, layer: nn.Module, channel_major: bool = False) -> Tensor:
    """``layer(u)`` for u of shape ``(B, L, D)``, by an op of this file if the layer is a plain ``nn.Linear``.

    Args:
        u: ``(B, L, D)``.
        layer: ``nn.Linear``, or what has taken its place.
        channel_major: whether the result had better lie in memory as ``(B, C, L)``.
    """
    turns = channel_major or (u.is_cuda and u.dim() == 3 and is_channel_major(u))
    operands = _operands(u, layer, autocast=turns)
    if operands is None:
        return layer(u)
    u, weight, bias = operands
    bias = None if bias is None else bias.to(u.dtype)
    if channel_major:
        return torch.ops.hyena.project_channel_major(u, weight, bias)
    if turns:
        return torch.ops.hyena.project_from_channel_major(u, weight, bias)
    return torch.ops.hyena.project(u, weight, bias)


def project_apart(u: Tensor, layer: nn.Module) -> tuple[Tensor, Tensor | None]:
    """``(z, bias)`` with ``z + bias = layer(u)``, for who reads ``z`` next to add what the product would write twice.

    Args:
        u: ``(B, L, D)``.
        layer: ``nn.Linear``, or what has taken its place.

    Returns:
        ``z``, ``(B, L, C)`` in memory as ``(B, C, L)``, and the bias ``(C,)`` in its own dtype, or None where the layer
        has none. If it is not a plain ``nn.Linear``, ``layer(u)`` and None.
    """
    operands = _operands(u, layer, autocast=True)
    if operands is None:
        return layer(u), None
    u, weight, bias = operands
    return torch.ops.hyena.project_channel_major(u, weight, None), bias
