"""``hyena::direct_recurrence``: the whole mixing step, from ``z`` to ``y``, with one filter of few taps.

The same result as ``filter_spectrum`` and ``recurrence``, without a transform and in one pass over memory: a NaN stays
where the taps reach.

Dimensions: B batch, L length, C channels, N order, G filter channels (C a multiple of G; channel c uses filter c // (C
// G)), K taps.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from hyena.ops._checks import check_like, check_projections, check_weights, check_whole_blocks
from hyena.ops._derivatives import Arguments, backward_through
from hyena.ops._layout import (
    channels_of,
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
from hyena.ops.direct_conv import check_taps
from hyena.ops.recurrence import gates_and_value
from hyena.ops.short_conv import masked, wide_weight

# Of z, weight, bias, h, d and z_bias; the last of no size where there is none.
Gradients = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


class Inputs(NamedTuple):
    """The arguments of ``hyena::direct_recurrence``."""

    z: Tensor
    weight: Tensor
    bias: Tensor | None
    h: Tensor
    d: Tensor
    mask: Tensor | None
    cu_seqlens: Tensor | None
    z_bias: Tensor | None
    causal: bool


def _parts(a: Inputs) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
    """``z`` with its bias, the gate behind the long convolution, the one before it, and the value."""
    z, (post, *pre, v) = gates_and_value(a.z, a.weight, a.bias, a.mask, a.cu_seqlens, a.z_bias, a.d.size(0))
    return z, post, pre[0] if pre else None, v


def _in_ops(*args: Any) -> Tensor:
    """The mixing step op by op: the fallback, and what is differentiated beyond the first derivative."""
    a = Inputs(*args)
    _, post, pre, v = _parts(a)
    return to_order_of(torch.ops.hyena.direct_conv(v, a.h, a.d, pre, post, a.cu_seqlens, a.causal), a.z)


def _in_ops_backward(dy: Tensor, *args: Any) -> Gradients:
    """Its gradients op by op; everything between ``z`` and ``y`` is computed again, not kept from the forward pass."""
    a = Inputs(*args)
    z, post, pre, v = _parts(a)
    # y is zero where nothing is kept, whatever its gradient is there.
    dy = masked(from_blocks(dy).to(z.dtype), a.mask)
    dv, dh, dd, dpre, dpost = torch.ops.hyena.direct_conv_backward(dy, v, a.h, a.d, pre, post, a.cu_seqlens, a.causal)
    dzc = torch.cat([dpost, dv] if pre is None else [dpost, dpre, dv], dim=2)
    dz, dw, db = torch.ops.hyena.short_conv_backward(dzc, z, a.weight, a.mask, a.cu_seqlens)
    dzb = a.weight.new_zeros(0) if a.z_bias is None else dz.sum((0, 1)).to(a.z_bias.dtype)
    return to_order_of(dz, a.z), dw, db, dh, dd, dzb


def _check(*args: Any) -> None:
    a = Inputs(*args)
    check_projections(a.z, a.mask, a.cu_seqlens)
    width, channels = channels_of(a.z), a.d.size(0) if a.d.dim() == 1 else 0
    if channels == 0 or width not in (2 * channels, 3 * channels):
        raise ValueError(
            f"z of {width} channels and d of shape {tuple(a.d.shape)}: z must be (B, L, 3 C), two gates and a value, "
            "or (B, L, 2 C), a gate and a value, for d of shape (C,)"
        )
    if is_blocked(a.z):
        check_whole_blocks("z", channels)
    check_weights("weight", a.weight, (width, "taps"), a.z)
    check_weights("bias", a.bias, (width,), a.z)
    check_weights("d", a.d, (channels,), a.z)
    check_weights("z_bias", a.z_bias, (width,), a.z)
    check_taps(a.h, channels, a.causal, a.z)


def _check_backward(dy: Tensor, *args: Any) -> None:
    _check(*args)
    a = Inputs(*args)
    check_like("dy", dy, shape_like(a.z, a.d.size(0)), a.z)


def _fake(*args: Any) -> Tensor:
    a = Inputs(*args)
    return empty_in_order_of(a.z, a.d.size(0))


def _fake_backward(dy: Tensor, *args: Any) -> Gradients:
    a = Inputs(*args)
    return (
        empty_in_order_of(a.z, channels_of(a.z)),
        a.weight.new_empty(a.weight.shape),
        a.weight.new_empty(a.weight.size(0)),
        a.h.new_empty(a.h.shape),
        a.d.new_empty(a.d.shape),
        a.weight.new_empty(0) if a.z_bias is None else a.z_bias.new_empty(a.z_bias.shape),
    )


def _backward(inputs: Arguments, grads: Arguments, needs: Arguments) -> tuple[Tensor | None, ...]:
    a = Inputs(*inputs)
    wide = a._replace(weight=wide_weight(a.weight, a.bias))
    dz, dw, db, dh, dd, dzb = torch.ops.hyena.direct_recurrence_backward(grads[0], *wide)
    dbias = None if a.bias is None else db.to(a.bias.dtype)
    return dz, dw.to(a.weight.dtype), dbias, dh, dd, None, None, None if a.z_bias is None else dzb, None


_ARGUMENTS = (
    "Tensor z, Tensor weight, Tensor? bias, Tensor h, Tensor d, Tensor? mask, Tensor? cu_seqlens, Tensor? z_bias, "
    "bool causal"
)
define(f"direct_recurrence({_ARGUMENTS}) -> Tensor", _in_ops, _fake, check=_check, backward=_backward, plain=_in_ops)
define(
    f"direct_recurrence_backward(Tensor dy, {_ARGUMENTS}) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    _in_ops_backward,
    _fake_backward,
    check=_check_backward,
    backward=backward_through(_in_ops_backward),
    plain=_in_ops_backward,
)


def direct_recurrence(
    z: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    h: Tensor,
    d: Tensor,
    mask: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    z_bias: Tensor | None = None,
    causal: bool = True,
) -> Tensor:
    """Checked call of ``hyena::direct_recurrence``: the mixing step with one filter, tap by tap.

    Args:
        z: ``(B, L, 3 C)`` projections, two gates and a value, any strides: ``y = x^0 (h * (x^1 v) + d (x^1 v))``; or
            ``(B, L, 2 C)``, a gate and a value: ``y = x^0 (h * v + d v)``. In channel blocks as in :func:`recurrence`.
        weight, bias: of the short convolution, a row for each channel of ``z``; the last tap is the current position.
        h: ``(K, G)``, lags ``0 … K-1``; two-sided ``(2 K - 1, G)``, lags ``-(K-1) … K-1``.
        d: ``(C,)`` weight of the convolution's input in its output.
        mask, cu_seqlens, z_bias: as in :func:`recurrence`.
        causal: whether ``h`` has lags of the past alone.

    Returns:
        ``(B, L, C)`` in the dtype and memory order of ``z``; ``(B, C / 16, L, 16)`` if ``z`` is in channel blocks.

    Raises:
        ValueError: shapes or dtypes that do not fit, with the ones found.
    """
    a = Inputs(z, weight, bias, h, d, mask, cu_seqlens, z_bias, causal)
    _check(*a)
    check_bounds(cu_seqlens, length_of(z), length_of(z))
    if z.numel() == 0:
        return empty_result(z, d.size(0), weight, bias, h, d, z_bias)
    return torch.ops.hyena.direct_recurrence(*a)
