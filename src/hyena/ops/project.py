"""``hyena::project``, ``project_channel_major``, ``project_from_channel_major``: linear layers around the mixing step.

They are ``F.linear`` in every other respect.

``project`` on the CPU: a long result lies in huge pages (the first touch of small ones can take as long as the matrix
product), and where torch's matrix products are slow (``csrc/cpu/kernels/dispatch.cpp``) float32 and float64 are
multiplied by a kernel.
``project_channel_major`` writes, ``project_from_channel_major`` reads ``(B, L, C)`` in memory as ``(B, C, L)``, the
order of a GPU's kernels: the same matrix products with other layout flags, where ``F.linear`` would copy.

Dimensions: B batch, L length, D channels in, C channels out.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hyena.ops._checks import check_any_order, check_like, check_linear, check_mask, check_rows
from hyena.ops._derivatives import backward_through
from hyena.ops._extension import EXTENSION
from hyena.ops._layout import (
    CHANNEL_BLOCK,
    channels_of,
    dense_rows,
    from_blocks,
    is_blocked,
    is_channel_major,
    length_of,
    new_channel_major,
)
from hyena.ops._library import define, has_kernel
from hyena.ops._modules import autocasts, fusible, is_plain
from hyena.ops.project_channel_blocked import is_channel_blocked_faster
from hyena.ops.short_conv import masked

# Up to this length one matrix product over the whole batch beats a batched product that writes (B, C, L).
_SHORT = 32

# From this length on a row of the batch keeps a GPU busy by itself.
_LONG = 4096


def _backward(inputs: Sequence, grads: Sequence[Tensor | None], needs: Sequence[bool]) -> tuple:
    u, weight, _ = inputs
    g = grads[0]
    assert g is not None
    rows = g.reshape(-1, g.size(2))  # not flatten, which batched gradients have no rule for
    du = torch.ops.hyena.project(g, weight.t(), None) if needs[0] else None
    if needs[1] and EXTENSION.multiplies(g) and rows.size(0) >= EXTENSION.fast_rows:
        dw, db = torch.ops.hyena.project_backward(g, u)
        return du, dw, db if needs[2] else None
    dw = rows.t() @ u.reshape(-1, u.size(2)) if needs[1] else None
    db = rows.sum(0) if needs[2] else None
    return du, dw, db


def _weight_and_bias(g: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    rows = from_blocks(g).flatten(0, 1)
    return rows.t() @ from_blocks(u).flatten(0, 1), rows.sum(0)


def _linear(u: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return F.linear(dense_rows(u), weight, bias)


def _check(u: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    check_rows("u", u)
    check_linear(u, weight, bias)


def _check_backward(g: Tensor, u: Tensor) -> None:
    check_any_order("u", u)
    check_any_order("g", g)
    batch, length = u.size(0), length_of(u)
    check_like("g", g, (batch, g.size(1), length, CHANNEL_BLOCK) if is_blocked(g) else (batch, length, g.size(2)), u)


define(
    "project(Tensor u, Tensor weight, Tensor? bias) -> Tensor",
    _linear,
    lambda u, weight, bias: u.new_empty(u.size(0), u.size(1), weight.size(0)),
    check=_check,
    backward=_backward,
    plain=_linear,
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


def _in_channel_major(u: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    y = (weight @ u.transpose(1, 2)).transpose(1, 2)
    return y if bias is None else y + bias


def _channel_major_backward(inputs: Sequence, grads: Sequence[Tensor | None], needs: Sequence[bool]) -> tuple:
    u, weight, _ = inputs
    g = grads[0]
    assert g is not None
    du = torch.bmm(g, weight.expand(u.size(0), -1, -1)) if needs[0] else None
    return du, _weight_gradient(g, u) if needs[1] else None, g.sum((0, 1)) if needs[2] else None


def _from_channel_major(u: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    if bias is None or u.size(1) < _LONG:
        columns = weight.t().expand(u.size(0), -1, -1)
        return torch.bmm(u, columns) if bias is None else torch.baddbmm(bias, u, columns)
    # A product for each row of the batch adds the bias as it writes; a batched one reads it out of a filled result.
    y = u.new_empty(u.size(0), u.size(1), weight.size(0))
    for row, to in zip(dense_rows(u), y, strict=True):
        torch.addmm(bias, row, weight.t(), out=to)
    return y


def _from_channel_major_backward(inputs: Sequence, grads: Sequence[Tensor | None], needs: Sequence[bool]) -> tuple:
    u, weight, _ = inputs
    g = grads[0]
    assert g is not None
    du = torch.ops.hyena.project_channel_major(g, weight.t(), None) if needs[0] else None
    return du, _weight_gradient(g, u) if needs[1] else None, g.sum((0, 1)) if needs[2] else None


def _weight_gradient(g: Tensor, u: Tensor) -> Tensor:
    # A product for each row of the batch, as it lies, and their sum. Short rows are put one after the other instead:
    # the products of all of them would take more memory than the copy.
    if g.size(1) >= min(g.size(2), u.size(2)):
        return torch.bmm(g.transpose(1, 2), u).sum(0)
    return g.flatten(0, 1).t() @ u.flatten(0, 1)


define(
    "project_backward(Tensor g, Tensor u) -> (Tensor, Tensor)",
    _weight_and_bias,
    lambda g, u: (u.new_empty(channels_of(g), channels_of(u)), u.new_empty(channels_of(g))),
    check=_check_backward,
    backward=backward_through(_weight_and_bias),
    plain=_weight_and_bias,
)
define(
    "project_channel_major(Tensor u, Tensor weight, Tensor? bias) -> Tensor",
    _channel_major,
    lambda u, weight, bias: new_channel_major(u, u.size(0), u.size(1), weight.size(0)),
    check=_check,
    backward=_channel_major_backward,
    plain=_in_channel_major,
)
define(
    "project_from_channel_major(Tensor u, Tensor weight, Tensor? bias) -> Tensor",
    _from_channel_major,
    lambda u, weight, bias: u.new_empty(u.size(0), u.size(1), weight.size(0)),
    check=_check,
    backward=_from_channel_major_backward,
    plain=F.linear,
)


@fusible
class LinearWithoutBias(nn.Linear):
    """An ``nn.Linear`` that leaves its bias to be added by somebody else, who sums up what several of them give."""

    def forward(self, input: Tensor) -> Tensor:
        """``(…, D) -> (…, C)``."""
        return F.linear(input, self.weight)


def _may_be_bfloat16(u: Tensor) -> bool:
    """Whether torch is allowed to multiply ``u`` on a CPU in bfloat16: the ops here never do.

    So ``torch.set_float32_matmul_precision("medium")`` says. A traced graph, which cannot ask, has the ops.
    """
    if u.dtype != torch.float32 or u.device.type != "cpu" or torch.compiler.is_compiling():
        return False
    return torch.backends.mkldnn.matmul.fp32_precision == "bf16"  # type: ignore[attr-defined]


def _operands(u: Tensor, layer: nn.Module, autocast: bool) -> tuple[Tensor, Tensor, Tensor | None] | None:
    """``u``, weight and bias for an op of this file; None if the layer must be called as a module.

    Whatever somebody put in a linear layer's place (an adapter, a quantised layer or weight), whatever hooks there are,
    autocast and products in bfloat16 work as they do for any layer.

    Args:
        u, layer: as in :func:`project`.
        autocast: whether an op may do what autocast would: ``u`` and weight come in its dtype then.
    """
    if not is_plain(layer, nn.Linear) and not is_plain(layer, LinearWithoutBias):
        return None
    if _may_be_bfloat16(u):
        return None
    weight: Tensor = layer.weight
    if autocasts(u.device):
        if not autocast or u.dtype == torch.float64:
            return None
        dtype = torch.get_autocast_dtype(u.device.type)
        u, weight = u.to(dtype), weight.to(dtype)
    bias = layer.bias if is_plain(layer, nn.Linear) else None
    # Something else may have been put into the parameters; the layer says what is wrong with it.
    fits = u.dim() in (3, 4) and weight.dim() == 2 and weight.size(1) == channels_of(u) and weight.dtype == u.dtype
    if not fits or (bias is not None and bias.shape != weight.shape[:1]):
        return None
    return u, weight, bias


def is_channel_major_faster(u: Tensor) -> bool:
    """Whether the ops that read the projection of ``u`` are faster if it lies in memory as ``(B, C, L)``."""
    return u.is_cuda and u.size(1) > _SHORT


def is_bias_left(u: Tensor) -> bool:
    """Whether the mixing step adds the bias of the projection of ``u`` as it reads it.

    Before a batched product on a GPU torch writes the bias to all of ``z``, an operator's largest array, then reads and
    writes it again.
    """
    return is_channel_major_faster(u) and has_kernel("recurrence", u.device) and u.dtype != torch.float64


def without_padding(u: Tensor, mask: Tensor | None) -> Tensor:
    """``u`` with zeros where ``mask`` is False.

    What a later op masks has a gradient of zero, and the gradient of the weights is a sum of products with ``u``: zero
    times a NaN in the padding would be NaN.
    """
    if mask is None:
        return u
    check_rows("u", u)
    check_mask(mask, u)
    return masked(u, mask)


def project(u: Tensor, layer: nn.Module, channel_major: bool | None = False, mask: Tensor | None = None) -> Tensor:
    """``layer(u)`` for u of shape ``(B, L, D)``, by an op if the layer is a plain ``nn.Linear``.

    Args:
        u: ``(B, L, D)``, or ``(B, D / 16, L, 16)`` as a mixing step gives it, without the arguments below.
        layer: ``nn.Linear``, or what has taken its place.
        channel_major: whether the result should lie in memory as ``(B, C, L)``; None: if the ops on sequences, which
            read it next, are faster then.
        mask: ``(B, L)`` bool, True = keep: other positions of ``u`` are not read, and come out as the layer's bias.
    """
    if is_blocked(u):
        if channel_major or mask is not None:
            raise ValueError(
                f"u of shape {tuple(u.shape)} is in channel blocks, which take neither an order nor a mask"
            )
        return _project_blocks(u, layer)
    u = without_padding(u, mask)
    if channel_major is None:
        channel_major = is_channel_major_faster(u)
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


def _project_blocks(u: Tensor, layer: nn.Module) -> Tensor:
    operands = _operands(u, layer, autocast=False)
    if operands is None:
        return layer(from_blocks(u))
    u, weight, bias = operands
    return torch.ops.hyena.project_from_channel_blocked(u, weight, None if bias is None else bias.to(u.dtype))


def linear(x: Tensor, layer: nn.Module) -> Tensor:
    """``layer(x)``, of many positions by a kernel where torch's matrix products are slow (``docs/kernels.md``, CPU).

    For layers that nothing is fused with: traced graphs, GPUs and other processors have the layer itself.

    Args:
        x: ``(…, D)``.
        layer: ``nn.Linear``, or what has taken its place.
    """
    if not EXTENSION.fast_rows or x.device.type != "cpu" or torch.compiler.is_compiling():
        return layer(x)
    if x.dim() < 2 or x.numel() < EXTENSION.fast_rows * x.size(-1):
        return layer(x)
    if x.dim() == 3:
        return project(x, layer)
    if not is_plain(layer, nn.Linear):  # hooks see what they would
        return layer(x)
    return project(x.flatten(0, -2)[None], layer)[0].unflatten(0, x.shape[:-1])


def project_for_mixing(
    u: Tensor, layer: nn.Module, channels: int, mask: Tensor | None = None
) -> tuple[Tensor, Tensor | None]:
    """The projection as :func:`hyena.ops.recurrence` reads it fastest, and a bias that is still to be added to it.

    Args:
        u: ``(B, L, D)``.
        layer: ``nn.Linear`` to the mixing step's gates and value, or what has taken its place.
        channels: of each gate.
        mask: as in :func:`project`.

    Returns:
        ``z`` ``(B, L, C)``, on a GPU in memory as ``(B, C, L)``, or on a CPU ``(B, C / 16, L, 16)``; and the bias
        ``(C,)`` in its own dtype, which the mixing step adds as it reads ``z``. Where leaving the bias out gains
        nothing, ``z`` has it and the bias is None. If the layer is not a plain ``nn.Linear``, ``z`` is ``layer(u)``.
    """
    blocked, bias_left = is_channel_blocked_faster(u, channels), is_bias_left(u)
    if not (blocked or bias_left):
        return project(u, layer, channel_major=None, mask=mask), None
    u = without_padding(u, mask)
    operands = _operands(u, layer, autocast=not blocked)
    if operands is None:
        return layer(u), None
    u, weight, bias = operands
    if blocked:
        return torch.ops.hyena.project_channel_blocked(u, weight, None if bias is None else bias.to(u.dtype)), None
    return torch.ops.hyena.project_channel_major(u, weight, None), bias
