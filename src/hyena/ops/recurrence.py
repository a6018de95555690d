"""``hyena::recurrence``: the whole mixing step, from the projections ``z`` to ``y``.

Short convolution, split into gates ``x^0 … x^{N-1}`` and value ``v``, then for each long filter a gate and a
convolution, and the last gate. With ``F = N - 1`` filters this is the released code's recurrence, with ``F = N`` the
paper's (eq. 4 of arXiv 2302.10866), which also convolves ``v`` before the first gate.

Dimensions: B batch, L length, C channels, N order, F long filters, G filter channels, P transform length.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hyena.ops._checks import check_devices, check_row, check_spectrum
from hyena.ops._layout import compute_dtype, empty_in_order_of, points_of, to_order_of
from hyena.ops._library import define
from hyena.ops._packing import check_bounds, map_rows, row_bounds
from hyena.ops._rfft import long_conv, long_conv_backward
from hyena.ops.short_conv import short_conv_rows, short_conv_rows_backward
from hyena.ops.spectrum import from_fallback_layout, spectrum_gradient, spectrum_rows, to_fallback_layout

# Of z, weight, bias, spectrum, d and z_bias; the last of no size where there is none.
Gradients = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


def _products_and_values(x: Sequence[Tensor], v: Tensor, s: Tensor, d: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """Inputs of each long convolution, and the values after each: (B, C, L); x[0] has not met the last value yet."""
    value_filter = s.size(0) == len(x)
    products, values = [], [v]
    for i in range(s.size(0)):
        # The gate of step i: none for the value filter, else x[N-1], x[N-2], …, x[1] in turn.
        step = i - 1 if value_filter else i
        p = values[-1] if step < 0 else x[len(x) - 1 - step] * values[-1]
        products.append(p)
        values.append(long_conv(p, s[i]) + d[i][:, None] * p)
    return products, values


def _rows(z: Tensor, weight: Tensor, bias: Tensor | None, spectrum: Tensor, d: Tensor, mask: Tensor | None) -> Tensor:
    parts = _split(short_conv_rows(z, weight, bias, mask), d.size(1))
    s, d = spectrum_rows(spectrum), d.to(parts[0].dtype)
    _, values = _products_and_values(parts[:-1], parts[-1], s, d)
    return (parts[0] * values[-1]).transpose(1, 2)


def _split(zc: Tensor, channels: int) -> list[Tensor]:
    return list(zc.transpose(1, 2).contiguous().split(channels, dim=1))


def _rows_backward(
    dy: Tensor,
    z: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    spectrum: Tensor,
    d: Tensor,
    mask: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Everything between z and y is computed again rather than kept from the forward pass."""
    parts = _split(short_conv_rows(z, weight, bias, mask), d.size(1))
    x, v = parts[:-1], parts[-1]
    s, d = spectrum_rows(spectrum), d.to(v.dtype)
    products, values = _products_and_values(x, v, s, d)
    g = dy.to(v.dtype).transpose(1, 2)
    dx: list[Tensor] = [g * values[-1]] + [torch.zeros(0)] * (len(x) - 1)
    ds, dd = [], []
    g = g * x[0]
    value_filter = s.size(0) == len(x)
    for i in reversed(range(s.size(0))):
        dp, ds_i = long_conv_backward(g, products[i], s[i])
        ds.append(ds_i)
        dd.append((g * products[i]).sum((0, 2)))
        dp = dp + d[i][:, None] * g
        step = i - 1 if value_filter else i
        if step < 0:
            g = dp
        else:
            gate = len(x) - 1 - step
            dx[gate] = dp * values[i]
            g = dp * x[gate]
    dzc = torch.cat([*dx, g], dim=1).transpose(1, 2)
    dz, dw, db = short_conv_rows_backward(dzc, z, weight, mask)
    if not ds:
        return dz, dw, db, torch.zeros_like(spectrum), torch.zeros_like(d)
    return dz, dw, db, spectrum_gradient(torch.stack(ds[::-1]), spectrum), torch.stack(dd[::-1])


def _with_bias(z: Tensor, z_bias: Tensor | None) -> Tensor:
    """``z + z_bias`` in the compute dtype."""
    return z if z_bias is None else z.to(compute_dtype(z)) + z_bias.to(compute_dtype(z))


def _recurrence(
    z: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    spectrum: Tensor,
    d: Tensor,
    mask: Tensor | None,
    cu_seqlens: Tensor | None,
    z_bias: Tensor | None,
) -> Tensor:
    x = _with_bias(z, z_bias)
    if cu_seqlens is None:
        return to_order_of(_rows(x, weight, bias, spectrum, d, mask), z)
    bounds = row_bounds(cu_seqlens, z.size(1), points_of(spectrum.size(2) - 1))
    if not bounds:
        return empty_in_order_of(z, d.size(1)).zero_()
    (y,) = map_rows(
        lambda keep, rows, m: _rows(rows, weight, bias, spectrum, d, keep if m is None else m),
        (x, mask),
        bounds,
    )
    return to_order_of(y, z)


def _recurrence_backward(
    dy: Tensor,
    z: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    spectrum: Tensor,
    d: Tensor,
    mask: Tensor | None,
    cu_seqlens: Tensor | None,
    z_bias: Tensor | None,
) -> Gradients:
    x = _with_bias(z, z_bias)
    like = weight[:0, 0] if z_bias is None else z_bias
    if cu_seqlens is None:
        dz, dw, db, ds, dd = _rows_backward(dy, x, weight, bias, spectrum, d, mask)
    else:
        bounds = row_bounds(cu_seqlens, z.size(1), points_of(spectrum.size(2) - 1))
        if not bounds:
            dw, db, ds, dd, dzb = (torch.zeros_like(t) for t in (weight, weight[:, 0], spectrum, d, like))
            return empty_in_order_of(z, z.size(2)).zero_(), dw, db, ds, dd, dzb
        dz, dw, db, ds, dd = map_rows(
            lambda keep, g, rows, m: _rows_backward(g, rows, weight, bias, spectrum, d, keep if m is None else m),
            (dy, x, mask),
            bounds,
        )
    dzb = torch.zeros_like(like) if z_bias is None else dz.sum((0, 1)).to(like.dtype)
    return to_order_of(dz, z), dw.to(weight.dtype), db.to(weight.dtype), ds.contiguous(), dd.to(d.dtype), dzb


def _differentiable_backward(
    dy: Tensor,
    z: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    spectrum: Tensor,
    d: Tensor,
    mask: Tensor | None,
    cu_seqlens: Tensor | None,
    z_bias: Tensor | None,
) -> Gradients:
    dz, dw, db, ds, dd, dzb = _recurrence_backward(
        dy, z, weight, bias, to_fallback_layout(spectrum), d, mask, cu_seqlens, z_bias
    )
    return dz, dw, db, from_fallback_layout(ds), dd, dzb


def _backward(inputs: Sequence, grads: Sequence[Tensor | None], needs: Sequence[bool]) -> tuple:
    z, weight, bias, spectrum, d, mask, cu_seqlens, z_bias = inputs
    dz, dw, db, ds, dd, dzb = torch.ops.hyena.recurrence_backward(
        grads[0], z, weight, bias, spectrum, d, mask, cu_seqlens, z_bias
    )
    db, dzb = None if bias is None else db.to(bias.dtype), None if z_bias is None else dzb
    return dz, dw, db, ds, dd, None, None, dzb


define(
    "recurrence(Tensor z, Tensor weight, Tensor? bias, Tensor spectrum, Tensor d, Tensor? mask, Tensor? cu_seqlens,"
    " Tensor? z_bias) -> Tensor",
    _recurrence,
    lambda z, weight, bias, spectrum, d, mask, cu_seqlens, z_bias: empty_in_order_of(z, d.size(1)),
    backward=_backward,
)
define(
    "recurrence_backward(Tensor dy, Tensor z, Tensor weight, Tensor? bias, Tensor spectrum, Tensor d, Tensor? mask,"
    " Tensor? cu_seqlens, Tensor? z_bias) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    _recurrence_backward,
    lambda dy, z, weight, bias, spectrum, d, mask, cu_seqlens, z_bias: (
        empty_in_order_of(z, z.size(2)),
        weight.new_empty(weight.shape),
        weight.new_empty(weight.size(0)),
        spectrum.new_empty(spectrum.shape),
        d.new_empty(d.shape),
        weight.new_empty(0) if z_bias is None else z_bias.new_empty(z_bias.shape),
    ),
    differentiable=_differentiable_backward,
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
) -> Tensor:
    """Checked call of ``hyena::recurrence``: the mixing step of an order-``N`` Hyena operator.

    Args:
        z: ``(B, L, (N+1) C)`` projections, gates ``x^0 … x^{N-1}`` then value, any strides.
        weight, bias: ``((N+1) C, taps)`` and ``((N+1) C,)`` of the short convolution; the last tap is the current
            position.
        spectrum: ``(F, G, P+1, 2)`` from :func:`hyena.ops.filter_spectrum`, in order of use; ``F`` is ``N-1``, or ``N``
            for the paper's recurrence.
        d: ``(F, C)`` weight of each convolution's input in its output; for order 1 without filters ``(0, C)``.
        mask: ``(B, L)`` bool, True where a position is kept: applied to ``z`` and after the short convolution.
        cu_seqlens: offsets of packed rows; then ``B = 1``.
        z_bias: ``((N+1) C,)``, added to ``z`` before everything else, in the dtype of the arithmetic: a projection's
            bias, which then need not be written to memory.

    Returns:
        ``(B, L, C)`` in the dtype and memory order of ``z``.

    Raises:
        ValueError: shapes, dtypes or sizes that do not fit, with the ones found.
    """
    check_row(z, mask, cu_seqlens)
    channels = d.size(-1)
    if d.dim() != 2 or spectrum.dim() != 4 or d.size(0) != spectrum.size(0):
        raise ValueError(
            f"d must be (F, C) and spectrum (F, G, P + 1, 2) with one F, got {tuple(d.shape)} and "
            f"{tuple(spectrum.shape)}"
        )
    order = z.size(2) // max(channels, 1) - 1
    if order < 1 or z.size(2) != (order + 1) * channels or d.size(0) not in (order - 1, order):
        raise ValueError(
            f"z of {z.size(2)} channels is not (N + 1) x {channels} for an order N with {d.size(0)} = N - 1 or N "
            "filters"
        )
    fits = weight.dim() == 2 and weight.size(0) == z.size(2) and weight.size(1) > 0
    if not fits or (bias is not None and bias.shape != weight.shape[:1]):
        shape = None if bias is None else tuple(bias.shape)
        raise ValueError(
            f"the short filter must be ({z.size(2)}, taps) with a bias of ({z.size(2)},) or None, got "
            f"{tuple(weight.shape)} and {shape}"
        )
    if z_bias is not None and z_bias.shape != z.shape[2:]:
        raise ValueError(f"z_bias must be ({z.size(2)},), one for each channel of z; got {tuple(z_bias.shape)}")
    check_devices(z, weight=weight, bias=bias, d=d, z_bias=z_bias)
    check_spectrum(z, spectrum, channels, cu_seqlens is not None)
    check_bounds(cu_seqlens, z.size(1), spectrum.size(2) - 1)
    return torch.ops.hyena.recurrence(z, weight, bias, spectrum, d, mask, cu_seqlens, z_bias)
