"""``hyena::direct_conv``: a gated convolution of few taps, tap by tap, ``post * (h conv (pre * v) + d * (pre * v))``.

The same result as ``filter_spectrum`` and ``gated_conv``, without a transform: a NaN stays where its taps reach.

Dimensions: B batch, L length, C channels, G filter channels (C a multiple of G; channel c uses filter c // (C // G)),
K taps.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from hyena.ops._checks import check_gates, check_like, check_weights
from hyena.ops._derivatives import Group, Multilinear
from hyena.ops._layout import compute_dtype, empty_in_order_of, empty_result, to_order_of
from hyena.ops._library import define, has_kernel
from hyena.ops._packing import check_bounds, row_bounds
from hyena.ops.short_conv import shifted


class _Cuda:
    """The most taps with which the CUDA kernel, on tensor cores, is taken for faster than transforms; 0: never.

    Where no measurement has shown it faster, transforms stay.
    """

    taps = 0  # of half precision, in rows of any length
    short_row = 0  # of half precision, up to which filters as long as the row are direct as well
    float_taps = 0  # of float32, which takes three products


def is_direct(taps: int, length: int, device: torch.device, dtype: torch.dtype = torch.float32) -> bool:
    """Whether rows of ``length`` positions meet a filter of this many taps faster tap by tap than by transforms.

    On a CPU, up to an eighth of the row, but 32 taps at least and 128 at most: measured, see docs/kernels.md, "Few
    taps".
    """
    if not (has_kernel("direct_conv", device) and has_kernel("direct_conv_backward", device)):
        return False
    if device.type == "cpu":
        return taps <= max(32, min(length // 8, 128))
    if dtype not in (torch.bfloat16, torch.float16):
        return dtype == torch.float32 and taps <= _Cuda.float_taps
    return taps <= (max(_Cuda.taps, _Cuda.short_row) if length <= _Cuda.short_row else _Cuda.taps)


def _row_numbers(v: Tensor, cu_seqlens: Tensor | None) -> Tensor | None:
    """(L, 1): from 1 on, which packed row a position is in."""
    if cu_seqlens is None:
        return None
    row_bounds(cu_seqlens, v.size(1), v.size(1))
    at = torch.arange(v.size(1), device=v.device)
    return torch.searchsorted(cu_seqlens.to(at), at, right=True)[:, None]


def _delayed(x: Tensor, lag: int, rows: Tensor | None) -> Tensor:
    """``x[:, t - lag]``, zero where that is another row or none."""
    moved = shifted(x, lag)
    return moved if rows is None else torch.where(rows == shifted(rows[None], lag)[0], moved, moved.new_zeros(()))


def _taps(h: Tensor, channels: int, dtype: torch.dtype, causal: bool) -> list[tuple[int, Tensor]]:
    """(lag, (C,)) of each tap."""
    first = 0 if causal else -(h.size(0) // 2)
    return list(enumerate(h.to(dtype).repeat_interleave(channels // h.size(1), dim=1), first))


def _gate(x: Tensor, gate: Tensor | None) -> Tensor:
    x = x.to(compute_dtype(x))
    return x if gate is None else x * gate


class Inputs(NamedTuple):
    """The arguments of ``hyena::direct_conv``."""

    v: Tensor
    h: Tensor
    d: Tensor | None
    pre: Tensor | None
    post: Tensor | None
    cu_seqlens: Tensor | None
    causal: bool


def check_taps(h: Tensor, channels: int, causal: bool, beside: Tensor) -> None:
    """Raises ValueError unless ``h`` holds taps ``(K, G)`` for so many channels of a sequence ``beside`` it."""
    check_weights("h", h, ("taps", "channels"), beside)
    if channels % h.size(1) != 0:
        raise ValueError(f"h: {channels} channels cannot share {h.size(1)} filters: not a multiple")
    if not causal and h.size(0) % 2 == 0:
        raise ValueError(f"h: a two-sided filter has an odd number of taps, lags -(K-1) … K-1; got {h.size(0)}")


def _check(*args: Any) -> None:
    a = Inputs(*args)
    check_gates(a.v, a.d, a.pre, a.post, a.cu_seqlens)
    check_taps(a.h, a.v.size(2), a.causal, a.v)


def _check_backward(dy: Tensor, *args: Any) -> None:
    _check(*args)
    check_like("dy", dy, args[0].shape, args[0])


def _direct_conv(*args: Any) -> Tensor:
    v, h, d, pre, post, cu_seqlens, causal = Inputs(*args)
    p, rows = _gate(v, pre), _row_numbers(v, cu_seqlens)
    y = torch.zeros_like(p) if d is None else p * d.to(p.dtype)
    for lag, tap in _taps(h, v.size(2), p.dtype, causal):
        y = y + tap * _delayed(p, lag, rows)
    return to_order_of(_gate(y, post), v)


def _direct_conv_backward(dy: Tensor, *args: Any) -> tuple[Tensor, ...]:
    v, h, d, pre, post, cu_seqlens, causal = Inputs(*args)
    p, g, rows = _gate(v, pre), _gate(dy, post), _row_numbers(v, cu_seqlens)
    y, dp, dh = torch.zeros_like(p), torch.zeros_like(p), []
    for lag, tap in _taps(h, v.size(2), p.dtype, causal):
        delayed = _delayed(p, lag, rows)
        y = y + tap * delayed
        dp = dp + tap * _delayed(g, -lag, rows)
        dh.append((g * delayed).sum((0, 1)).view(h.size(1), -1).sum(1))
    dd = p.new_zeros(0)
    if d is not None:
        y, dp, dd = y + d.to(p.dtype) * p, dp + d.to(p.dtype) * g, (g * p).sum((0, 1)).to(d.dtype)
    dpre, dpost = (v.new_zeros(v.size(0), v.size(1), 0) for _ in range(2))
    if pre is not None:
        dpre = to_order_of(dp * v, pre)
    if post is not None:
        dpost = to_order_of(y * dy, post)
    return to_order_of(_gate(dp, pre), v), torch.stack(dh).to(h.dtype), dd, dpre, dpost


def _fake(*args: Any) -> Tensor:
    a = Inputs(*args)
    return empty_in_order_of(a.v, a.v.size(2))


def _fake_backward(dy: Tensor, *args: Any) -> tuple[Tensor, ...]:
    a = Inputs(*args)
    absent = (a.v.size(0), a.v.size(1), 0)
    return (
        empty_in_order_of(a.v, a.v.size(2)),
        a.h.new_empty(a.h.shape),
        a.v.new_empty(0, dtype=compute_dtype(a.v)) if a.d is None else a.d.new_empty(a.v.size(2)),
        a.v.new_empty(absent) if a.pre is None else empty_in_order_of(a.pre, a.v.size(2)),
        a.v.new_empty(absent) if a.post is None else empty_in_order_of(a.post, a.v.size(2)),
    )


_ARGUMENTS = "Tensor v, Tensor h, Tensor? d, Tensor? pre, Tensor? post, Tensor? cu_seqlens, bool causal"
_RULES = Multilinear(
    "direct_conv",
    Inputs._fields,
    [Group(("v",)), Group(("pre",)), Group(("post",)), Group(("h", "d"))],
    ("v", "h", "d", "pre", "post"),
    optional=("d", "pre", "post"),
    rows=("v", "pre", "post"),
)
define(f"direct_conv({_ARGUMENTS}) -> Tensor", _direct_conv, _fake, check=_check, rule=_RULES.rule)
define(
    f"direct_conv_backward(Tensor dy, {_ARGUMENTS}) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    _direct_conv_backward,
    _fake_backward,
    check=_check_backward,
    rule=_RULES.backward_rule,
)


def direct_conv(
    v: Tensor,
    h: Tensor,
    d: Tensor | None = None,
    pre: Tensor | None = None,
    post: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    causal: bool = True,
    longest: int | None = None,
) -> Tensor:
    """Checked call of ``hyena::direct_conv``: ``post * (h conv (pre * v) + d * (pre * v))``.

    Args:
        v, pre, post: ``(B, L, C)``, any strides, one dtype.
        h: ``(K, G)`` taps of lags ``0 … K-1``; two-sided ``(2K-1, G)``, lags ``-(K-1) … K-1``.
        d: ``(C,)``.
        cu_seqlens: offsets of packed rows; then ``B = 1``.
        causal: whether ``h`` has lags from 0 on, or two-sided ones.
        longest: what no packed row is to be longer than.

    Raises:
        ValueError: shapes or dtypes that do not fit, with the ones found.
    """
    a = Inputs(v, h, d, pre, post, cu_seqlens, causal)
    _check(*a)
    check_bounds(cu_seqlens, v.size(1), v.size(1) if longest is None else longest)
    if v.numel() == 0:
        return empty_result(v, v.size(2), h, d, pre, post)
    return torch.ops.hyena.direct_conv(*a)
