"""``hyena::gated_conv``: a long convolution between two gates, ``post * (h conv (pre * v) + d * (pre * v))``.

Dimensions: B batch, L length, C channels, G filter channels (C a multiple of G; channel c uses filter c // (C // G)),
P transform length.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hyena.ops._checks import check_gates, check_spectrum
from hyena.ops._layout import compute_dtype, empty_in_order_of, points_of, to_order_of
from hyena.ops._library import define
from hyena.ops._packing import check_bounds, map_rows, row_bounds
from hyena.ops._rfft import long_conv, long_conv_backward
from hyena.ops.spectrum import from_fallback_layout, spectrum_gradient, spectrum_rows, to_fallback_layout

# Of v, pre, post, spectrum and d.
Gradients = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


def gated_conv_rows(v: Tensor, spectrum: Tensor, d: Tensor | None, pre: Tensor | None, post: Tensor | None) -> Tensor:
    """(B, L, C) in and out, in the compute dtype."""
    p = _gated(v, pre)
    y = long_conv(p, spectrum_rows(spectrum))
    if d is not None:
        y = y + d.to(p.dtype)[:, None] * p
    if post is not None:
        y = y * post.to(p.dtype).transpose(1, 2)
    return y.transpose(1, 2)


def _gated(v: Tensor, pre: Tensor | None) -> Tensor:
    dtype = compute_dtype(v)
    p = v.to(dtype).transpose(1, 2)
    return (p if pre is None else p * pre.to(dtype).transpose(1, 2)).contiguous()


def gated_conv_rows_backward(
    dy: Tensor, v: Tensor, spectrum: Tensor, d: Tensor | None, pre: Tensor | None, post: Tensor | None
) -> Gradients:
    """Gradients of v, pre, post (B, L, C), spectrum and d; zeros of no size stand for absent inputs."""
    p, s = _gated(v, pre), spectrum_rows(spectrum)
    g = dy.to(p.dtype).transpose(1, 2)
    absent = (p.size(0), p.size(2), 0)  # one tensor each: outputs of an op may not share memory
    dpost = p.new_zeros(absent)
    if post is not None:
        inner = long_conv(p, s)
        if d is not None:
            inner = inner + d.to(p.dtype)[:, None] * p
        dpost, g = (g * inner).transpose(1, 2), g * post.to(p.dtype).transpose(1, 2)
    dp, ds = long_conv_backward(g, p, s)
    dd = p.new_zeros(0)
    if d is not None:
        dp = dp + d.to(p.dtype)[:, None] * g
        dd = (g * p).sum((0, 2))
    dp = dp.transpose(1, 2)
    if pre is None:
        return dp, p.new_zeros(absent), dpost, spectrum_gradient(ds, spectrum), dd
    return dp * pre.to(p.dtype), dp * v.to(p.dtype), dpost, spectrum_gradient(ds, spectrum), dd


def _gated_conv(
    v: Tensor, spectrum: Tensor, d: Tensor | None, pre: Tensor | None, post: Tensor | None, cu_seqlens: Tensor | None
) -> Tensor:
    if cu_seqlens is None:
        return to_order_of(gated_conv_rows(v, spectrum, d, pre, post), v)
    bounds = row_bounds(cu_seqlens, v.size(1), points_of(spectrum.size(1) - 1))
    if not bounds:
        return torch.zeros_like(v)
    (y,) = map_rows(lambda _, a, b, c: gated_conv_rows(a, spectrum, d, b, c), (v, pre, post), bounds)
    return to_order_of(y, v)


def _gated_conv_backward(
    dy: Tensor,
    v: Tensor,
    spectrum: Tensor,
    d: Tensor | None,
    pre: Tensor | None,
    post: Tensor | None,
    cu_seqlens: Tensor | None,
) -> Gradients:
    if cu_seqlens is None:
        dv, dpre, dpost, ds, dd = gated_conv_rows_backward(dy, v, spectrum, d, pre, post)
    else:
        dv, dpre, dpost, ds, dd = _packed_backward(dy, v, spectrum, d, pre, post, cu_seqlens)
    if d is not None:
        dd = dd.to(d.dtype)
    orders = [v, v if pre is None else pre, v if post is None else post]
    dv, dpre, dpost = (to_order_of(g, t) for g, t in zip((dv, dpre, dpost), orders, strict=True))
    return dv, dpre, dpost, ds.contiguous(), dd


def _packed_backward(
    dy: Tensor,
    v: Tensor,
    spectrum: Tensor,
    d: Tensor | None,
    pre: Tensor | None,
    post: Tensor | None,
    cu_seqlens: Tensor,
) -> Gradients:
    bounds = row_bounds(cu_seqlens, v.size(1), points_of(spectrum.size(1) - 1))
    width = v.size(2)
    if not bounds:
        dpre, dpost = (v.new_zeros(1, v.size(1), 0) if t is None else torch.zeros_like(t) for t in (pre, post))
        return torch.zeros_like(v), dpre, dpost, torch.zeros_like(spectrum), v.new_zeros(0 if d is None else width)

    def rows(_: Tensor, g: Tensor, a: Tensor, b: Tensor | None, c: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        dv, dpre, dpost, ds, dd = gated_conv_rows_backward(g, a, spectrum, d, b, c)
        return torch.cat([dv, dpre, dpost], dim=2), ds, dd

    packed, ds, dd = map_rows(rows, (dy, v, pre, post), bounds)
    dv, dpre, dpost = packed.split([width, 0 if pre is None else width, 0 if post is None else width], dim=2)
    return dv, dpre, dpost, ds, dd


def _differentiable_backward(dy: Tensor, v: Tensor, spectrum: Tensor, *rest: Tensor | None) -> tuple[Tensor, ...]:
    dv, dpre, dpost, ds, dd = _gated_conv_backward(dy, v, to_fallback_layout(spectrum), *rest)
    return dv, dpre, dpost, from_fallback_layout(ds), dd


def _fake_backward(
    dy: Tensor,
    v: Tensor,
    spectrum: Tensor,
    d: Tensor | None,
    pre: Tensor | None,
    post: Tensor | None,
    cu_seqlens: Tensor | None,
) -> Gradients:
    absent = (v.size(0), v.size(1), 0)
    return (
        empty_in_order_of(v, v.size(2)),
        v.new_empty(absent) if pre is None else empty_in_order_of(pre, v.size(2)),
        v.new_empty(absent) if post is None else empty_in_order_of(post, v.size(2)),
        spectrum.new_empty(spectrum.shape),
        v.new_empty(0, dtype=compute_dtype(v)) if d is None else d.new_empty(v.size(2)),
    )


def _backward(inputs: Sequence, grads: Sequence[Tensor | None], needs: Sequence[bool]) -> tuple:
    v, spectrum, d, pre, post, cu_seqlens = inputs
    dv, dpre, dpost, ds, dd = torch.ops.hyena.gated_conv_backward(grads[0], v, spectrum, d, pre, post, cu_seqlens)
    present = (None if t is None else g for t, g in ((d, dd), (pre, dpre), (post, dpost)))
    return dv, ds, *present, None


define(
    "gated_conv(Tensor v, Tensor spectrum, Tensor? d, Tensor? pre, Tensor? post, Tensor? cu_seqlens) -> Tensor",
    _gated_conv,
    lambda v, spectrum, d, pre, post, cu_seqlens: empty_in_order_of(v, v.size(2)),
    backward=_backward,
)
define(
    "gated_conv_backward(Tensor dy, Tensor v, Tensor spectrum, Tensor? d, Tensor? pre, Tensor? post,"
    " Tensor? cu_seqlens) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    _gated_conv_backward,
    _fake_backward,
    differentiable=_differentiable_backward,
)


def gated_conv(
    v: Tensor,
    spectrum: Tensor,
    d: Tensor | None = None,
    pre: Tensor | None = None,
    post: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
) -> Tensor:
    """Checked call of ``hyena::gated_conv``: ``post * (h conv (pre * v) + d * (pre * v))``.

    Args:
        v, pre, post: ``(B, L, C)``, any strides, one dtype.
        spectrum: ``(G, P+1, 2)`` from :func:`hyena.ops.filter_spectrum`.
        d: ``(C,)``.
        cu_seqlens: offsets of packed rows; then ``B = 1``.

    Raises:
        ValueError: shapes, dtypes or sizes that do not fit, with the ones found.
    """
    check_gates(v, d, pre, post, cu_seqlens)
    check_spectrum(v, spectrum, v.size(2), cu_seqlens is not None)
    if spectrum.dim() != 3:
        raise ValueError(f"gated_conv takes one filter's spectrum, (G, P + 1, 2), got {tuple(spectrum.shape)}")
    check_bounds(cu_seqlens, v.size(1), spectrum.size(1) - 1)
    return torch.ops.hyena.gated_conv(v, spectrum, d, pre, post, cu_seqlens)
