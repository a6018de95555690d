"""Long convolutions over grids of one, two or three axes, channels last.

Dimensions: B batch, space the grid's positions along each axis, C channels, G filter channels, K taps of an axis.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor

from hyena import ops
from hyena.functional.dense import dense_conv, is_dense
from hyena.functional.layout import BOUNDARIES, Layout
from hyena.functional.sequence import gated_conv

Setting = TypeVar("Setting", bool, str)

MAX_AXES = 3

# Points of a transform times filter channels that are done at once (spectra of 16 MiB in float32), in steps of the
# channels that kernels take together: of large grids so much less memory is in use that a call is a third faster.
_PIECE, _LANES = 1 << 21, 16


def fft_conv_nd(
    x: Tensor,
    h: Tensor,
    d: Tensor | None = None,
    *,
    causal: bool | Sequence[bool] = False,
    boundary: str | Sequence[str] = "zero",
) -> Tensor:
    """Long convolution over a grid of one, two or three axes, two-sided or causal along each of them.

    ``y[b, s, c] = sum_l h[l, c] x[b, s - l, c] + d[c] x[b, s, c]``, over the lags ``l`` of all axes

    The grid is laid out as one row, and convolved as such; :mod:`hyena.functional.layout` has how. A grid of ``n_1 x …
    x n_a`` positions and a filter of all its lags take one transform of ``2^(a-1) n_1 … n_a`` complex points for each
    row and channel, at the next fast size of the whole, and the same back. A circle costs what zeros cost; a mirrored
    axis twice that if it is the first one, else one and a half times. A filter of few lags takes less, and of very few
    taps are applied one by one.

    Args:
        x: ``(B, *space, C)``, any strides.
        h: ``(*K, G)``: along an axis with ``2k - 1`` taps the lags ``-(k-1) … k-1``, along a causal one with ``k`` taps
            the lags ``0 … k-1``. ``C`` is a multiple of ``G``; channel ``c`` uses filter ``c // (C // G)``. ``(B, *K,
            G)``: a filter of its own for each row of the batch.
        d: ``(C,)`` weight of the input itself.
        causal: whether the outputs see only positions up to their own; of all axes, or of each.
        boundary: what is beyond the grid, of all axes or of each: ``"zero"``; ``"circular"``, the other end, for lags
            of any length; ``"reflect"``, the grid in reverse without the position at its end, and so on.

    Returns:
        ``(B, *space, C)``, contiguous, in the dtype of ``x``. It is computed in float32, in float64 for float64.

    Raises:
        ValueError: shapes, dtypes or options that do not fit.
    """
    axes = check_grid(x)
    causals, boundaries = _check_causal(causal, axes), check_boundaries(boundary, axes)
    _check_taps(x, h, d, causals)
    if x.numel() == 0:
        return ops.empty_result(x.flatten(1, -2), x.size(-1), h, d).view(x.shape)
    if is_dense(x, h):
        return _tap_by_tap(x, h, d, causals, boundaries)
    layout = Layout.of(x.shape[1:-1], h.shape[-axes - 1 : -1], causals, boundaries)
    h, groups = h.to(ops.compute_dtype(x)), h.size(-1)
    step = max(1, _PIECE // layout.length)
    step, width = min(groups, -(-step // _LANES) * _LANES), x.size(-1) // groups
    outputs = []
    ds = (None,) * groups if d is None else d.split(step * width)
    for x_part, h_part, d_part in zip(x.split(step * width, -1), h.split(step, -1), ds):
        taps, one_sided = layout.taps(h_part)
        outputs.append(layout.grid(gated_conv(layout.row(x_part), taps, d_part, causal=one_sided)))
    return outputs[0].contiguous() if len(outputs) == 1 else torch.cat(outputs, dim=-1)


def _tap_by_tap(x: Tensor, h: Tensor, d: Tensor | None, causals: Sequence[bool], boundaries: Sequence[str]) -> Tensor:
    dtype = ops.compute_dtype(x)
    inside = x.to(dtype)
    weight = h.to(dtype).movedim(-1, 0).flip(list(range(1, h.dim()))).repeat_interleave(x.size(-1) // h.size(-1), dim=0)
    before = [count - 1 if one else count // 2 for one, count in zip(causals, weight.shape[1:], strict=True)]
    y = dense_conv(inside, weight, None, before, boundaries)
    y = y if d is None else y + d.to(dtype) * inside
    return y.to(x.dtype).contiguous()


def separable_conv_nd(
    x: Tensor,
    factors: Sequence[Tensor],
    d: Tensor | None = None,
    *,
    causal: bool | Sequence[bool] = False,
    boundary: str | Sequence[str] = "zero",
) -> Tensor:
    """:func:`fft_conv_nd` of a filter that is a product of one for each axis, an axis at a time.

    ``fft_conv_nd(x, torch.einsum("ag,bg->abg", *factors), d, causal=causal, boundary=boundary)``

    It takes transforms of the grid alone, ``n_1 … n_a`` points for each axis.

    Args:
        x, d, causal, boundary: as :func:`fft_conv_nd`.
        factors: ``(K, G)`` taps for each axis, or ``(B, K, G)``.

    Returns:
        ``(B, *space, C)``, contiguous, in the dtype of ``x``.

    Raises:
        ValueError: shapes, dtypes or options that do not fit.
    """
    axes = check_grid(x)
    causals, boundaries = _check_causal(causal, axes), check_boundaries(boundary, axes)
    if len(factors) != axes:
        raise ValueError(f"an input of shape {tuple(x.shape)} has {axes} axes, got {len(factors)} factors")
    _check_weight(x, d)
    y = x.to(ops.compute_dtype(x))
    for axis, (h, one_sided, edge) in enumerate(zip(factors, causals, boundaries, strict=True)):
        y = along(y, axis, partial(_conv_of_rows, h=h, batch=x.size(0), causal=one_sided, boundary=edge))
    y = y if d is None else y + d.to(y.dtype) * x.to(y.dtype)
    return y.to(x.dtype)


def along(x: Tensor, axis: int, convolve: Callable[[Tensor], Tensor]) -> Tensor:
    """``convolve`` of all rows along one axis of ``(B, *space, C)``, which it gets as ``(rows, n, C)``."""
    moved = x.movedim(axis + 1, -2)
    y = convolve(moved.flatten(0, -3))
    return y.unflatten(0, moved.shape[:-2]).movedim(-2, axis + 1).contiguous()


def _conv_of_rows(rows: Tensor, h: Tensor, batch: int, causal: bool, boundary: str) -> Tensor:
    if h.dim() == 3 and h.size(0) == batch:  # the rows of a grid follow each other
        h = h.repeat_interleave(rows.size(0) // max(batch, 1), dim=0)
    return fft_conv_nd(rows, h, causal=causal, boundary=boundary)


def check_grid(x: Tensor) -> int:
    """The axes of an input ``(B, *space, C)``.

    Raises:
        ValueError: there are none or too many, with the shape.
    """
    axes = x.dim() - 2
    if not 1 <= axes <= MAX_AXES or not x.is_floating_point():
        raise ValueError(
            f"x must be floating point of shape (B, *space, C) with 1 to {MAX_AXES} axes, got {x.dtype} of shape "
            f"{tuple(x.shape)}"
        )
    return axes


def _per_axis(name: str, kind: type[Setting], setting: Setting | Sequence[Setting], axes: int) -> tuple[Setting, ...]:
    """A setting for each axis, of one for all or of a sequence.

    Raises:
        TypeError: settings of another kind.
        ValueError: a sequence of another length, with both.
    """
    if isinstance(setting, kind):
        return (setting,) * axes
    if not isinstance(setting, Sequence) or not all(isinstance(one, kind) for one in setting):
        raise TypeError(f"{name} must be a {kind.__name__}, or a sequence with one for each axis, got {setting!r}")
    if len(setting) != axes:
        raise ValueError(f"{name} has {len(setting)} entries, {tuple(setting)}, for a grid of {axes} axes")
    return tuple(setting)


def _check_causal(causal: bool | Sequence[bool], axes: int) -> tuple[bool, ...]:
    return _per_axis("causal", bool, causal, axes)


def check_boundaries(boundary: str | Sequence[str], axes: int) -> tuple[str, ...]:
    """The boundary of each axis.

    Raises:
        TypeError: something else than names.
        ValueError: one that there is not, or too many of them.
    """
    boundaries = _per_axis("boundary", str, boundary, axes)
    for one in boundaries:
        if one not in BOUNDARIES:
            raise ValueError(f"boundary must be one of {', '.join(map(repr, BOUNDARIES))}, got {one!r}")
    return boundaries


def _check_taps(x: Tensor, h: Tensor, d: Tensor | None, causals: Sequence[bool]) -> None:
    axes = len(causals)
    own = h.dim() == axes + 2 and h.size(0) == x.size(0)
    if not (h.dim() == axes + 1 or own) or not h.is_floating_point() or h.device != x.device:
        taps = ", ".join(f"taps {i + 1}" for i in range(axes))
        raise ValueError(
            f"h must be floating point of shape ({taps}, channels) or ({x.size(0)}, {taps}, channels) on {x.device} "
            f"for an input of shape {tuple(x.shape)}; got {h.dtype} of shape {tuple(h.shape)} on {h.device}"
        )
    counts, groups = tuple(h.shape[-axes - 1 : -1]), h.size(-1)
    if min(counts) < 1 or groups < 1:
        raise ValueError(f"h needs at least one tap along each axis and one channel, got shape {tuple(h.shape)}")
    if x.size(-1) % groups != 0:
        raise ValueError(f"h: {x.size(-1)} channels cannot share {groups} filters: not a multiple")
    for count, causal in zip(counts, causals, strict=True):
        if not causal and count % 2 == 0:
            raise ValueError(
                "h: along an axis that is not causal a filter has an odd number of taps, lags -(k-1) … k-1; got "
                f"{counts}"
            )
    _check_weight(x, d)


def _check_weight(x: Tensor, d: Tensor | None) -> None:
    if d is not None and (d.shape != x.shape[-1:] or not d.is_floating_point() or d.device != x.device):
        raise ValueError(
            f"d must be floating point of shape ({x.size(-1)},) on {x.device}, got {d.dtype} of shape {tuple(d.shape)} "
            f"on {d.device}"
        )
    if d is not None and d.dtype == torch.float64 and x.dtype != torch.float64:
        raise ValueError(
            f"d is torch.float64 beside an input of {x.dtype}, for which everything is computed in torch.float32: use "
            "d.float(), or an input of torch.float64"
        )
