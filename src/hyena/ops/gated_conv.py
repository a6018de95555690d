"""``hyena::gated_conv``: a long convolution between two gates, ``post * (h conv (pre * v) + d * (pre * v))``.

Dimensions: B batch, L length, C channels, G filter channels (C a multiple of G; channel c uses filter c // (C // G)),
P transform length.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from hyena.ops._checks import check_finite, check_gates, check_like, check_spectrum
from hyena.ops._derivatives import Group, Multilinear
from hyena.ops._layout import compute_dtype, empty_in_order_of, empty_result, points_of, to_order_of
from hyena.ops._library import define
from hyena.ops._packing import check_bounds, map_rows, row_bounds
from hyena.ops._rfft import long_conv, long_conv_backward, sectioned_conv, sectioned_conv_backward
from hyena.ops.spectrum import spectrum_gradient, spectrum_rows

# Of v, pre, post, spectrum and d.
Gradients = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


class Inputs(NamedTuple):
    """The arguments of ``hyena::gated_conv``."""

    v: Tensor
    spectrum: Tensor
    d: Tensor | None
    pre: Tensor | None
    post: Tensor | None
    cu_seqlens: Tensor | None
    sectioned: bool

    @property
    def longest(self) -> int:
        """The longest row that the spectrum serves."""
        return self.v.size(1) if self.sectioned else points_of(self.spectrum.size(1) - 1)


def _gated_conv_rows(a: Inputs) -> Tensor:
    """(B, L, C) in and out, in the compute dtype."""
    p = _gated(a.v, a.pre)
    y = _convolved(a, p)
    if a.post is not None:
        y = y * a.post.to(p.dtype).transpose(1, 2)
    return y.transpose(1, 2)


def _convolved(a: Inputs, p: Tensor) -> Tensor:
    """``h conv p + d * p``, (B, C, L)."""
    y = (sectioned_conv if a.sectioned else long_conv)(p, spectrum_rows(a.spectrum))
    return y if a.d is None else y + a.d.to(p.dtype)[:, None] * p


def _gated(v: Tensor, pre: Tensor | None) -> Tensor:
    dtype = compute_dtype(v)
    p = v.to(dtype).transpose(1, 2)
    return (p if pre is None else p * pre.to(dtype).transpose(1, 2)).contiguous()


def _gated_conv_rows_backward(dy: Tensor, a: Inputs) -> Gradients:
    """Gradients of v, pre, post (B, L, C), spectrum and d; zeros of no size stand for absent inputs."""
    p, s = _gated(a.v, a.pre), spectrum_rows(a.spectrum)
    g = dy.to(p.dtype).transpose(1, 2)
    absent = (p.size(0), p.size(2), 0)  # one tensor each: outputs of an op may not share memory
    dpost = p.new_zeros(absent)
    if a.post is not None:
        dpost, g = (g * _convolved(a, p)).transpose(1, 2), g * a.post.to(p.dtype).transpose(1, 2)
    dp, ds = (sectioned_conv_backward if a.sectioned else long_conv_backward)(g, p, s)
    dd = p.new_zeros(0)
    if a.d is not None:
        dp = dp + a.d.to(p.dtype)[:, None] * g
        dd = (g * p).sum((0, 2))
    dp = dp.transpose(1, 2)
    if a.pre is None:
        return dp, p.new_zeros(absent), dpost, spectrum_gradient(ds, a.spectrum), dd
    return dp * a.pre.to(p.dtype), dp * a.v.to(p.dtype), dpost, spectrum_gradient(ds, a.spectrum), dd


def _check(*args: Any) -> None:
    a = Inputs(*args)
    check_gates(a.v, a.d, a.pre, a.post, a.cu_seqlens)
    check_spectrum(a.v, a.spectrum, a.v.size(2), a.sectioned or a.cu_seqlens is not None)


def _check_backward(dy: Tensor, *args: Any) -> None:
    _check(*args)
    check_like("dy", dy, args[0].shape, args[0])


def _gated_conv(*args: Any) -> Tensor:
    a = Inputs(*args)
    if a.cu_seqlens is None:
        return to_order_of(_gated_conv_rows(a), a.v)
    bounds = row_bounds(a.cu_seqlens, a.v.size(1), a.longest)
    if not bounds:
        return torch.zeros_like(a.v)

    def rows(_: Tensor, v: Tensor, pre: Tensor | None, post: Tensor | None) -> Tensor:
        return _gated_conv_rows(a._replace(v=v, pre=pre, post=post))

    (y,) = map_rows(rows, (a.v, a.pre, a.post), bounds)
    return to_order_of(y, a.v)


def _gated_conv_backward(dy: Tensor, *args: Any) -> Gradients:
    a = Inputs(*args)
    if a.cu_seqlens is None:
        dv, dpre, dpost, ds, dd = _gated_conv_rows_backward(dy, a)
    else:
        dv, dpre, dpost, ds, dd = _packed_backward(dy, a, a.cu_seqlens)
    if a.d is not None:
        dd = dd.to(a.d.dtype)
    orders = [a.v, a.v if a.pre is None else a.pre, a.v if a.post is None else a.post]
    dv, dpre, dpost = (to_order_of(g, t) for g, t in zip((dv, dpre, dpost), orders, strict=True))
    return dv, dpre, dpost, ds.contiguous(), dd


def _packed_backward(dy: Tensor, a: Inputs, cu_seqlens: Tensor) -> Gradients:
    v, width = a.v, a.v.size(2)
    bounds = row_bounds(cu_seqlens, v.size(1), a.longest)
    if not bounds:
        dpre, dpost = (v.new_zeros(1, v.size(1), 0) if t is None else torch.zeros_like(t) for t in (a.pre, a.post))
        dd = v.new_zeros(0 if a.d is None else width)
        return torch.zeros_like(v), dpre, dpost, torch.zeros_like(a.spectrum), dd

    def rows(_: Tensor, g: Tensor, v: Tensor, pre: Tensor | None, post: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        dv, dpre, dpost, ds, dd = _gated_conv_rows_backward(g, a._replace(v=v, pre=pre, post=post))
        return torch.cat([dv, dpre, dpost], dim=2), ds, dd

    packed, ds, dd = map_rows(rows, (dy, v, a.pre, a.post), bounds)
    dv, dpre, dpost = packed.split([width, 0 if a.pre is None else width, 0 if a.post is None else width], dim=2)
    return dv, dpre, dpost, ds, dd


def _fake(*args: Any) -> Tensor:
    a = Inputs(*args)
    return empty_in_order_of(a.v, a.v.size(2))


def _fake_backward(dy: Tensor, *args: Any) -> Gradients:
    a = Inputs(*args)
    absent = (a.v.size(0), a.v.size(1), 0)
    return (
        empty_in_order_of(a.v, a.v.size(2)),
        a.v.new_empty(absent) if a.pre is None else empty_in_order_of(a.pre, a.v.size(2)),
        a.v.new_empty(absent) if a.post is None else empty_in_order_of(a.post, a.v.size(2)),
        a.spectrum.new_empty(a.spectrum.shape),
        a.v.new_empty(0, dtype=compute_dtype(a.v)) if a.d is None else a.d.new_empty(a.v.size(2)),
    )


_RULES = Multilinear(
    "gated_conv",
    Inputs._fields,
    [Group(("v",)), Group(("pre",)), Group(("post",)), Group(("spectrum", "d"))],
    ("v", "pre", "post", "spectrum", "d"),
    optional=("d", "pre", "post"),
    rows=("v", "pre", "post"),
)
define(
    "gated_conv(Tensor v, Tensor spectrum, Tensor? d, Tensor? pre, Tensor? post, Tensor? cu_seqlens, bool sectioned)"
    " -> Tensor",
    _gated_conv,
    _fake,
    check=_check,
    rule=_RULES.rule,
)
define(
    "gated_conv_backward(Tensor dy, Tensor v, Tensor spectrum, Tensor? d, Tensor? pre, Tensor? post,"
    " Tensor? cu_seqlens, bool sectioned) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    _gated_conv_backward,
    _fake_backward,
    check=_check_backward,
    rule=_RULES.backward_rule,
)


def gated_conv(
    v: Tensor,
    spectrum: Tensor,
    d: Tensor | None = None,
    pre: Tensor | None = None,
    post: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    sectioned: bool = False,
) -> Tensor:
    """Checked call of ``hyena::gated_conv``: ``post * (h conv (pre * v) + d * (pre * v))``.

    A NaN or an infinity is spread over its whole row; under ``torch.autograd.detect_anomaly()`` it raises instead.

    Args:
        v, pre, post: ``(B, L, C)``, any strides, one dtype.
        spectrum: ``(G, P+1, 2)`` from :func:`hyena.ops.filter_spectrum`.
        d: ``(C,)``.
        cu_seqlens: offsets of packed rows; then ``B = 1``.
        sectioned: rows are longer than ``P``, and the filter, causal, is not: they are convolved ``P`` positions at a
            time (see :func:`hyena.ops.section_length`).

    Raises:
        ValueError: shapes, dtypes or sizes that do not fit, with the ones found.
    """
    a = Inputs(v, spectrum, d, pre, post, cu_seqlens, sectioned)
    _check(*a)
    check_bounds(cu_seqlens, v.size(1), v.size(1) if sectioned else spectrum.size(1) - 1)
    if v.numel() == 0:
        return empty_result(v, v.size(2), spectrum, d, pre, post)
    check_finite(v=v, pre=pre, post=post)
    return torch.ops.hyena.gated_conv(*a)
