"""``hyena::gated_conv``: a long convolution between two gates, ``post * (h conv (pre * v) + d * (pre * v))``.

Dimensions: B batch, L length, C channels, G filter channels (C a multiple of G; channel c uses filter c // (C // G)),
P transform length.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hyena.ops._layout import compute_dtype, empty_in_order_of, points_of, to_order_of
from hyena.ops._library import define
from hyena.ops._packing import check_bounds, map_rows, row_bounds
from hyena.ops.short_conv import check_devices, check_row
from hyena.ops.spectrum import from_fallback_layout, spectrum_gradient, spectrum_rows, to_fallback_layout

# Complex numbers that the fallback holds in one piece of a transform (256 MiB in complex64): more channels than fit are
# done in turn, so that a million positions need not hold every channel's transform at once.
_CHUNK = 1 << 25

# Of v, pre, post, spectrum and d.
Gradients = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


def pieces(batch: int, channels: int, spectrum: Tensor, numbers: int | None = None) -> list[tuple[slice, slice]]:
    """(filter channels, channels) of each piece of a transform, so that it holds at most ``numbers`` complex ones."""
    groups, size = spectrum.size(0), spectrum.size(1)
    width = channels // groups
    step = max(1, (numbers or _CHUNK) // max(1, batch * width * size))
    return [(slice(g, g + step), slice(g * width, (g + step) * width)) for g in range(0, groups, step)]


def long_conv(x: Tensor, spectrum: Tensor) -> Tensor:
    """``h conv x``: x (B, C, L) in the compute dtype, spectrum (G, P+1) complex -> (B, C, L)."""
    if x.numel() == 0:  # FFT libraries refuse empty batches
        return torch.zeros_like(x)
    out = [long_conv_piece(x[:, c], spectrum[g]) for g, c in pieces(x.size(0), x.size(1), spectrum)]
    return out[0] if len(out) == 1 else torch.cat(out, dim=1)


def long_conv_piece(x: Tensor, spectrum: Tensor) -> Tensor:
    """:func:`long_conv` of what is not empty, all at once."""
    points = 2 * (spectrum.size(1) - 1)
    product = torch.fft.rfft(x, n=points).unflatten(1, (spectrum.size(0), -1)) * spectrum[:, None]
    return torch.fft.irfft(product.flatten(1, 2), n=points)[..., : x.size(2)]


def long_conv_backward(dy: Tensor, x: Tensor, spectrum: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of x and of the spectrum: (B, C, L) and (G, P+1) complex (real gradient of re and im)."""
    if x.numel() == 0:
        return torch.zeros_like(x), torch.zeros_like(spectrum)
    out = [_long_conv_backward(dy[:, c], x[:, c], spectrum[g]) for g, c in pieces(x.size(0), x.size(1), spectrum)]
    if len(out) == 1:
        return out[0]
    return torch.cat([dx for dx, _ in out], dim=1), torch.cat([ds for _, ds in out], dim=0)


def _long_conv_backward(dy: Tensor, x: Tensor, spectrum: Tensor) -> tuple[Tensor, Tensor]:
    groups, points = spectrum.size(0), 2 * (spectrum.size(1) - 1)
    dy_f = torch.fft.rfft(dy, n=points).unflatten(1, (groups, -1))
    x_f = torch.fft.rfft(x, n=points).unflatten(1, (groups, -1))
    # conj_physical, because a lazy conj is lost inside a TorchDispatchMode (a flop counter, selective checkpointing).
    dx = torch.fft.irfft((dy_f * spectrum.conj_physical()[:, None]).flatten(1, 2), n=points)[..., : x.size(2)]
    # irfft reads each inner coefficient twice (once conjugated), the first and the last once.
    twice = torch.full((spectrum.size(1),), 2.0 / points, dtype=x.dtype, device=x.device)
    twice[0] = twice[-1] = 1.0 / points
    return dx, (dy_f * x_f.conj_physical()).sum((0, 2)) * twice


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


def check_spectrum(z: Tensor, spectrum: Tensor, channels: int, packed: bool) -> None:
    """Whether a ``(G, P+1, 2)`` spectrum serves ``channels`` channels of ``z``.

    Raises:
        ValueError: wrong shape, dtype or device, or rows longer than ``P``.
    """
    dtype = compute_dtype(z)
    if spectrum.size(-1) != 2 or spectrum.dtype != dtype or spectrum.device != z.device:
        raise ValueError(
            f"the spectrum must be a {dtype} tensor of shape (…, G, P + 1, 2) on {z.device}, as filter_spectrum makes "
            f"it; got {spectrum.dtype} of shape {tuple(spectrum.shape)} on {spectrum.device}"
        )
    if spectrum.size(-3) == 0 or channels % spectrum.size(-3) != 0:
        raise ValueError(f"{channels} channels cannot share {spectrum.size(-3)} filters: not a multiple")
    if not packed and z.size(1) > spectrum.size(-2) - 1:
        raise ValueError(
            f"a row of {z.size(1)} positions needs a spectrum of at least that size; this one was built for "
            f"{spectrum.size(-2) - 1}"
        )


def check_inputs(
    v: Tensor, d: Tensor | None, pre: Tensor | None, post: Tensor | None, cu_seqlens: Tensor | None
) -> None:
    """What every gated convolution asks of its inputs but the filter.

    Raises:
        ValueError: shapes or dtypes that do not fit, with the ones found.
    """
    check_row(v, None, cu_seqlens)
    for name, gate in (("pre", pre), ("post", post)):
        if gate is not None and (gate.shape != v.shape or gate.dtype != v.dtype):
            raise ValueError(
                f"{name} must be {v.dtype} of shape {tuple(v.shape)} like v, got {gate.dtype} of shape "
                f"{tuple(gate.shape)}"
            )
    if d is not None and d.shape != v.shape[2:]:
        raise ValueError(f"d must be ({v.size(2)},), got {tuple(d.shape)}")
    check_devices(v, pre=pre, post=post, d=d)


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
    check_inputs(v, d, pre, post, cu_seqlens)
    check_spectrum(v, spectrum, v.size(2), cu_seqlens is not None)
    if spectrum.dim() != 3:
        raise ValueError(f"gated_conv takes one filter's spectrum, (G, P + 1, 2), got {tuple(spectrum.shape)}")
    check_bounds(cu_seqlens, v.size(1), spectrum.size(1) - 1)
    return torch.ops.hyena.gated_conv(v, spectrum, d, pre, post, cu_seqlens)
