"""``hyena::short_conv``: the depthwise causal convolution of a few taps over the projections.

Dimensions: B batch, L length, C channels, T taps.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from hyena.ops._checks import check_like, check_row, check_weights
from hyena.ops._derivatives import Group, Multilinear, Named
from hyena.ops._layout import compute_dtype, empty_in_order_of, empty_result, to_order_of
from hyena.ops._library import define
from hyena.ops._packing import check_bounds, map_rows, row_bounds


def masked(x: Tensor, mask: Tensor | None) -> Tensor:
    """``x`` of shape (B, L, C) with zeros where ``mask`` is False; a select, so that NaN in the padding stays there."""
    return x if mask is None else torch.where(mask[..., None], x, torch.zeros((), dtype=x.dtype, device=x.device))


def shifted(x: Tensor, by: int) -> Tensor:
    """``x[:, t - by]`` with zeros shifted in: to later positions for ``by > 0``, to earlier ones for ``by < 0``."""
    if by == 0:
        return x
    length, size = x.size(1), min(abs(by), x.size(1))
    zeros = x.new_zeros(x.size(0), size, x.size(2))
    kept = x[:, : length - size] if by > 0 else x[:, size:]
    return torch.cat([zeros, kept] if by > 0 else [kept, zeros], dim=1)


def short_conv_rows(z: Tensor, weight: Tensor, bias: Tensor | None, mask: Tensor | None) -> Tensor:
    """``y_t = sum_j weight[:, T-1-j] z_{t-j} + bias``, masked before and after, in the compute dtype."""
    dtype = compute_dtype(z)
    x, w = masked(z.to(dtype), mask), weight.to(dtype)
    taps = w.size(1)
    y = x * w[:, taps - 1]
    for j in range(1, min(taps, x.size(1))):
        y = y + shifted(x, j) * w[:, taps - 1 - j]
    if bias is not None:
        y = y + bias.to(dtype)
    return masked(y, mask)


def short_conv_rows_backward(
    dy: Tensor, z: Tensor, weight: Tensor, mask: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of z, weight and bias, in the compute dtype."""
    dtype = compute_dtype(z)
    x, w, g = masked(z.to(dtype), mask), weight.to(dtype), masked(dy.to(dtype), mask)
    taps = w.size(1)
    dz = g * w[:, taps - 1]
    dw = [(g * x).sum((0, 1))]
    for j in range(1, taps):
        ahead = shifted(g, -j)
        dz = dz + ahead * w[:, taps - 1 - j]
        dw.append((ahead * x).sum((0, 1)))
    return masked(dz, mask), torch.stack(dw[::-1], dim=1), g.sum((0, 1))


class Inputs(NamedTuple):
    """The arguments of ``hyena::short_conv``."""

    z: Tensor
    weight: Tensor
    bias: Tensor | None
    mask: Tensor | None
    cu_seqlens: Tensor | None


def _without_bias(z: Tensor, weight: Tensor, mask: Tensor | None, cu_seqlens: Tensor | None) -> Inputs:
    """The arguments of ``hyena::short_conv_backward`` after ``dy``."""
    return Inputs(z, weight, None, mask, cu_seqlens)


def check_short_conv(*args: Any) -> None:
    """Raises ``ValueError`` where the arguments of ``hyena::short_conv`` do not fit."""
    a = Inputs(*args)
    check_row(a.z, a.mask, a.cu_seqlens)
    check_weights("weight", a.weight, (a.z.size(2), "taps"), a.z)
    check_weights("bias", a.bias, (a.z.size(2),), a.z)


def _check_backward(dy: Tensor, *args: Any) -> None:
    a = _without_bias(*args)
    check_short_conv(*a)
    check_like("dy", dy, a.z.shape, a.z)


def _short_conv(*args: Any) -> Tensor:
    a = Inputs(*args)
    if a.cu_seqlens is None:
        return to_order_of(short_conv_rows(a.z, a.weight, a.bias, a.mask), a.z)
    bounds = row_bounds(a.cu_seqlens, a.z.size(1), a.z.size(1))
    if not bounds:
        return torch.zeros_like(a.z)
    (y,) = map_rows(
        lambda keep, rows, m: short_conv_rows(rows, a.weight, a.bias, keep if m is None else m), (a.z, a.mask), bounds
    )
    return to_order_of(y, a.z)


def _short_conv_backward(dy: Tensor, *args: Any) -> tuple[Tensor, Tensor, Tensor]:
    a = _without_bias(*args)
    if a.cu_seqlens is None:
        dz, dw, db = short_conv_rows_backward(dy, a.z, a.weight, a.mask)
    else:
        bounds = row_bounds(a.cu_seqlens, a.z.size(1), a.z.size(1))
        if not bounds:
            return torch.zeros_like(a.z), torch.zeros_like(a.weight), torch.zeros_like(a.weight[:, 0])
        dz, dw, db = map_rows(
            lambda keep, g, rows, m: short_conv_rows_backward(g, rows, a.weight, keep if m is None else m),
            (dy, a.z, a.mask),
            bounds,
        )
    return to_order_of(dz, a.z), dw.to(a.weight.dtype), db.to(a.weight.dtype)


def _fake(*args: Any) -> Tensor:
    a = Inputs(*args)
    return empty_in_order_of(a.z, a.z.size(2))


def _fake_backward(dy: Tensor, *args: Any) -> tuple[Tensor, Tensor, Tensor]:
    a = _without_bias(*args)
    return empty_in_order_of(a.z, a.z.size(2)), a.weight.new_empty(a.weight.shape), a.weight.new_empty(a.weight.size(0))


def wide_weight(weight: Tensor, bias: Tensor | None) -> Tensor:
    """The weight in the dtype of the bias, if that is wider: a backward op sums the bias' gradient in it."""
    return weight if bias is None else weight.to(torch.promote_types(weight.dtype, bias.dtype))


class _ShortConv(Multilinear):
    def call_backward(self, dy: Tensor, a: Named) -> dict[str, Tensor]:
        weight, bias = a["weight"], a["bias"]
        found = super().call_backward(dy, {**a, "weight": wide_weight(weight, bias)})
        found["weight"] = found["weight"].to(weight.dtype)
        return found if bias is None else {**found, "bias": found["bias"].to(bias.dtype)}


_RULES = _ShortConv(
    "short_conv",
    Inputs._fields,
    [Group(("z",), without=("bias",)), Group(("weight", "bias"))],
    ("z", "weight", "bias"),
    optional=("bias",),
    rows=("z", "mask"),
    backward_names=("z", "weight", "mask", "cu_seqlens"),
)
define(
    "short_conv(Tensor z, Tensor weight, Tensor? bias, Tensor? mask, Tensor? cu_seqlens) -> Tensor",
    _short_conv,
    _fake,
    check=check_short_conv,
    rule=_RULES.rule,
)
define(
    "short_conv_backward(Tensor dy, Tensor z, Tensor weight, Tensor? mask, Tensor? cu_seqlens)"
    " -> (Tensor, Tensor, Tensor)",
    _short_conv_backward,
    _fake_backward,
    check=_check_backward,
    rule=_RULES.backward_rule,
)


def short_conv(
    z: Tensor, weight: Tensor, bias: Tensor | None = None, mask: Tensor | None = None, cu_seqlens: Tensor | None = None
) -> Tensor:
    """Checked call of ``hyena::short_conv``; see :func:`hyena.functional.short_conv`."""
    a = Inputs(z, weight, bias, mask, cu_seqlens)
    check_short_conv(*a)
    check_bounds(cu_seqlens, z.size(1), z.size(1))
    if z.numel() == 0:
        return empty_result(z, z.size(2), weight, bias)
    return torch.ops.hyena.short_conv(*a)
