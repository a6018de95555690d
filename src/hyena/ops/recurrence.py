"""``hyena::recurrence``: the whole mixing step, from the projections ``z`` to ``y``.

Short convolution, split into gates ``x^0 … x^{N-1}`` and value ``v``, then for each long filter a gate and a
convolution, and the last gate. With ``F = N - 1`` filters this is the released code's recurrence, with ``F = N`` the
paper's (eq. 4 of arXiv 2302.10866), which also convolves ``v`` before the first gate.

Dimensions: B batch, L length, C channels, N order, F long filters, G filter channels, P transform length.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from hyena.ops._checks import (
    check_finite,
    check_like,
    check_projections,
    check_spectrum,
    check_weights,
    check_whole_blocks,
    looks_for_nan,
)
from hyena.ops._derivatives import Arguments, backward_through
from hyena.ops._layout import (
    channels_of,
    compute_dtype,
    empty_in_order_of,
    empty_result,
    from_blocks,
    is_blocked,
    length_of,
    shape_like,
    to_order_of,
)
from hyena.ops._library import define
from hyena.ops._packing import check_bounds
from hyena.ops.short_conv import masked, wide_weight

# Of z, weight, bias, spectrum, d and z_bias; the last of no size where there is none.
Gradients = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


class Inputs(NamedTuple):
    """The arguments of ``hyena::recurrence``."""

    z: Tensor
    weight: Tensor
    bias: Tensor | None
    spectrum: Tensor
    d: Tensor
    mask: Tensor | None
    cu_seqlens: Tensor | None
    z_bias: Tensor | None
    sectioned: bool


def _gates_of_steps(a: Inputs, order: int) -> list[int | None]:
    """Which gate each long convolution's input meets: none for a value filter, then ``x^{N-1} … x^1``."""
    gates: list[int | None] = list(range(order - 1, 0, -1))
    return gates if a.d.size(0) < order else [None, *gates]


def gates_and_value(
    z: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    mask: Tensor | None,
    cu_seqlens: Tensor | None,
    z_bias: Tensor | None,
    channels: int,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """``z`` ``(B, L, C)`` with its bias, and gates and value after the short convolution, in the compute dtype."""
    z, dtype = from_blocks(z), compute_dtype(z)
    z = z.to(dtype) if z_bias is None else z.to(dtype) + z_bias.to(dtype)
    return z, torch.ops.hyena.short_conv(z, weight, bias, mask, cu_seqlens).split(channels, dim=2)


def _parts(a: Inputs) -> tuple[Tensor, tuple[Tensor, ...]]:
    return gates_and_value(a.z, a.weight, a.bias, a.mask, a.cu_seqlens, a.z_bias, a.d.size(1))


def _in_ops(*args: Any) -> Tensor:
    """The mixing step op by op: the fallback, and what is differentiated beyond the first derivative."""
    a = Inputs(*args)
    _, (*x, v) = _parts(a)
    for i, gate in enumerate(_gates_of_steps(a, len(x))):
        pre = None if gate is None else x[gate]
        v = torch.ops.hyena.gated_conv(v, a.spectrum[i], a.d[i], pre, None, a.cu_seqlens, a.sectioned)
    return to_order_of(x[0] * v, a.z)


def _in_ops_backward(dy: Tensor, *args: Any) -> Gradients:
    """Its gradients op by op; everything between ``z`` and ``y`` is computed again, not kept from the forward pass."""
    a = Inputs(*args)
    z, (*x, v) = _parts(a)
    gates, values = _gates_of_steps(a, len(x)), [v]
    for i, gate in enumerate(gates):
        pre = None if gate is None else x[gate]
        others = a.spectrum[i], a.d[i], pre, None, a.cu_seqlens, a.sectioned
        values.append(torch.ops.hyena.gated_conv(values[-1], *others))
    # y is zero where nothing is kept, whatever its gradient is there.
    g = masked(from_blocks(dy).to(z.dtype), a.mask)
    dx: dict[int, Tensor] = {0: g * values[-1]}
    g = g * x[0]
    ds, dd = [torch.zeros_like(a.spectrum[:0])], [torch.zeros_like(a.d[:0])]
    for i, gate in reversed(list(enumerate(gates))):
        pre = None if gate is None else x[gate]
        g, dpre, _, ds_i, dd_i = torch.ops.hyena.gated_conv_backward(
            g, values[i], a.spectrum[i], a.d[i], pre, None, a.cu_seqlens, a.sectioned
        )
        if gate is not None:
            dx[gate] = dpre
        ds.insert(1, ds_i[None])
        dd.insert(1, dd_i[None])
    dzc = torch.cat([*(dx[n] for n in range(len(x))), g], dim=2)
    dz, dw, db = torch.ops.hyena.short_conv_backward(dzc, z, a.weight, a.mask, a.cu_seqlens)
    dzb = a.weight.new_zeros(0) if a.z_bias is None else dz.sum((0, 1)).to(a.z_bias.dtype)
    return to_order_of(dz, a.z), dw, db, torch.cat(ds), torch.cat(dd), dzb


def _check(*args: Any) -> None:
    a = Inputs(*args)
    check_projections(a.z, a.mask, a.cu_seqlens)
    width, channels = channels_of(a.z), a.d.size(-1) if a.d.dim() > 0 else 0
    if a.d.dim() != 2 or a.spectrum.dim() != 4 or a.d.size(0) != a.spectrum.size(0):
        raise ValueError(
            f"d must be (F, C) and spectrum (F, G, P + 1, 2) with one F, got {tuple(a.d.shape)} and "
            f"{tuple(a.spectrum.shape)}"
        )
    order = width // max(channels, 1) - 1
    if order < 1 or width != (order + 1) * channels or a.d.size(0) not in (order - 1, order):
        raise ValueError(
            f"z of {width} channels is not (N + 1) x {channels} for an order N with {a.d.size(0)} = N - 1 or N filters "
            "(the d of shape (F, C))"
        )
    if is_blocked(a.z):
        check_whole_blocks("z", channels)
    check_weights("weight", a.weight, (width, "taps"), a.z)
    check_weights("bias", a.bias, (width,), a.z)
    check_weights("d", a.d, tuple(a.d.shape), a.z)
    check_weights("z_bias", a.z_bias, (width,), a.z)
    check_spectrum(a.z, a.spectrum, channels, a.sectioned or a.cu_seqlens is not None, dims=4)


def _check_backward(dy: Tensor, *args: Any) -> None:
    _check(*args)
    a = Inputs(*args)
    check_like("dy", dy, shape_like(a.z, a.d.size(1)), a.z)


def _fake(*args: Any) -> Tensor:
    a = Inputs(*args)
    return empty_in_order_of(a.z, a.d.size(1))


def _fake_backward(dy: Tensor, *args: Any) -> Gradients:
    a = Inputs(*args)
    return (
        empty_in_order_of(a.z, channels_of(a.z)),
        a.weight.new_empty(a.weight.shape),
        a.weight.new_empty(a.weight.size(0)),
        a.spectrum.new_empty(a.spectrum.shape),
        a.d.new_empty(a.d.shape),
        a.weight.new_empty(0) if a.z_bias is None else a.z_bias.new_empty(a.z_bias.shape),
    )


def _backward(inputs: Arguments, grads: Arguments, needs: Arguments) -> tuple[Tensor | None, ...]:
    a = Inputs(*inputs)
    wide = a._replace(weight=wide_weight(a.weight, a.bias))
    dz, dw, db, ds, dd, dzb = torch.ops.hyena.recurrence_backward(grads[0], *wide)
    dbias = None if a.bias is None else db.to(a.bias.dtype)
    return dz, dw.to(a.weight.dtype), dbias, ds, dd, None, None, None if a.z_bias is None else dzb, None


define(
    "recurrence(Tensor z, Tensor weight, Tensor? bias, Tensor spectrum, Tensor d, Tensor? mask, Tensor? cu_seqlens,"
    " Tensor? z_bias, bool sectioned) -> Tensor",
    _in_ops,
    _fake,
    check=_check,
    backward=_backward,
    plain=_in_ops,
)
define(
    "recurrence_backward(Tensor dy, Tensor z, Tensor weight, Tensor? bias, Tensor spectrum, Tensor d, Tensor? mask,"
    " Tensor? cu_seqlens, Tensor? z_bias, bool sectioned) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    _in_ops_backward,
    _fake_backward,
    check=_check_backward,
    backward=backward_through(_in_ops_backward),
    plain=_in_ops_backward,
)


def recurrence(
    z: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    spectrum: Tensor,
    d: Tensor,
    mask: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    z_bias: Tensor | None = None,
    sectioned: bool = False,
) -> Tensor:
    """Checked call of ``hyena::recurrence``: the mixing step of an order-``N`` Hyena operator.

    A NaN or an infinity is spread over its whole row; under ``torch.autograd.detect_anomaly()`` it raises instead.

    Args:
        z: ``(B, L, (N+1) C)`` projections, gates ``x^0 … x^{N-1}`` then value, any strides; or, of channels that are a
            multiple of 16, in channel blocks ``(B, (N+1) C / 16, L, 16)``, as a CPU's kernel reads them fastest.
        weight, bias: ``((N+1) C, taps)`` and ``((N+1) C,)`` of the short convolution; the last tap is the current
            position.
        spectrum: ``(F, G, P+1, 2)`` from :func:`hyena.ops.filter_spectrum`, in order of use; ``F`` is ``N-1``, or ``N``
            for the paper's recurrence.
        d: ``(F, C)`` weight of each convolution's input in its output; for order 1 without filters ``(0, C)``.
        mask: ``(B, L)`` bool, True where a position is kept: applied to ``z`` and after the short convolution.
        cu_seqlens: offsets of packed rows; then ``B = 1``.
        z_bias: ``((N+1) C,)``, added to ``z`` before everything else, in the dtype of the arithmetic: a projection's
            bias, which then need not be written to memory.
        sectioned: rows are longer than ``P``, and the filters, causal, are not: they are convolved ``P`` positions at a
            time (see :func:`hyena.ops.section_length`).

    Returns:
        ``(B, L, C)`` in the dtype and memory order of ``z``; ``(B, C / 16, L, 16)`` if ``z`` is in channel blocks.

    Raises:
        ValueError: shapes, dtypes or sizes that do not fit, with the ones found.
    """
    a = Inputs(z, weight, bias, spectrum, d, mask, cu_seqlens, z_bias, sectioned)
    _check(*a)
    check_bounds(cu_seqlens, length_of(z), length_of(z) if sectioned else spectrum.size(2) - 1)
    if z.numel() == 0:
        return empty_result(z, d.size(1), weight, bias, spectrum, d, z_bias)
    if looks_for_nan():
        check_finite(z=from_blocks(z) if mask is None else masked(from_blocks(z), mask))
    return torch.ops.hyena.recurrence(*a)
