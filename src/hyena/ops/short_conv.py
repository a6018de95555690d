"""``hyena::short_conv``: the depthwise causal convolution of a few taps over the projections.

Dimensions: B batch, L length, C channels, T taps.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hyena.ops._checks import check_devices, check_row
from hyena.ops._layout import compute_dtype, empty_in_order_of, to_order_of
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


def _short_conv(
    z: Tensor, weight: Tensor, bias: Tensor | None, mask: Tensor | None, cu_seqlens: Tensor | None
) -> Tensor:
    if cu_seqlens is None:
        return to_order_of(short_conv_rows(z, weight, bias, mask), z)
    bounds = row_bounds(cu_seqlens, z.size(1), z.size(1))
    if not bounds:
        return torch.zeros_like(z)
    (y,) = map_rows(
        lambda keep, rows, m: short_conv_rows(rows, weight, bias, keep if m is None else m), (z, mask), bounds
    )
    return to_order_of(y, z)


def _short_conv_backward(
    dy: Tensor, z: Tensor, weight: Tensor, mask: Tensor | None, cu_seqlens: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    if cu_seqlens is None:
        dz, dw, db = short_conv_rows_backward(dy, z, weight, mask)
    else:
        bounds = row_bounds(cu_seqlens, z.size(1), z.size(1))
        if not bounds:
            return torch.zeros_like(z), torch.zeros_like(weight), torch.zeros_like(weight[:, 0])
        dz, dw, db = map_rows(
            lambda keep, g, rows, m: short_conv_rows_backward(g, rows, weight, keep if m is None else m),
            (dy, z, mask),
            bounds,
        )
    return to_order_of(dz, z), dw.to(weight.dtype), db.to(weight.dtype)


def _backward(inputs: Sequence, grads: Sequence[Tensor | None], needs: Sequence[bool]) -> tuple:
    z, weight, bias, mask, cu_seqlens = inputs
    dz, dw, db = torch.ops.hyena.short_conv_backward(grads[0], z, weight, mask, cu_seqlens)
    return dz, dw, None if bias is None else db.to(bias.dtype), None, None


define(
    "short_conv(Tensor z, Tensor weight, Tensor? bias, Tensor? mask, Tensor? cu_seqlens) -> Tensor",
    _short_conv,
    lambda z, weight, bias, mask, cu_seqlens: empty_in_order_of(z, z.size(2)),
    backward=_backward,
)
define(
    "short_conv_backward(Tensor dy, Tensor z, Tensor weight, Tensor? mask, Tensor? cu_seqlens)"
    " -> (Tensor, Tensor, Tensor)",
    _short_conv_backward,
    lambda dy, z, weight, mask, cu_seqlens: (
        empty_in_order_of(z, z.size(2)),
        torch.empty_like(weight, memory_format=torch.contiguous_format),
        weight.new_empty(weight.size(0)),
    ),
)


def short_conv(
    z: Tensor, weight: Tensor, bias: Tensor | None = None, mask: Tensor | None = None, cu_seqlens: Tensor | None = None
) -> Tensor:
    """Checked call of ``hyena::short_conv``; see :func:`hyena.functional.short_conv`."""
    check_row(z, mask, cu_seqlens)
    if weight.dim() != 2 or weight.size(0) != z.size(2) or weight.size(1) < 1:
        raise ValueError(
            f"weight must be ({z.size(2)}, taps) for z of shape {tuple(z.shape)}, got {tuple(weight.shape)}"
        )
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"bias must be ({z.size(2)},), got {tuple(bias.shape)}")
    check_devices(z, weight=weight, bias=bias)
    check_bounds(cu_seqlens, z.size(1), z.size(1))
    return torch.ops.hyena.short_conv(z, weight, bias, mask, cu_seqlens)
