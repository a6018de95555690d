"""What the ops ask of their arguments. Errors name the argument and repeat its shape, dtype and device.

Every op checks in three places with the functions below: in its Python call, in its fallback and in its fake. Kernels
check for themselves (``csrc``).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hyena.ops._layout import CHANNEL_BLOCK, channels_of, compute_dtype, is_blocked, length_of, points_of

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_NAMES = "float16, bfloat16, float32 or float64"


def shown(t: Tensor) -> str:
    """``t`` in an error."""
    return f"{t.dtype} of shape {tuple(t.shape)} on {t.device}"


def check_rows(name: str, x: Tensor) -> None:
    """A sequence ``(B, L, C)``: dense, of a dtype that the ops know.

    Raises:
        ValueError: it is not, with its dtype and shape.
    """
    if x.dim() != 3 or x.dtype not in DTYPES or x.layout != torch.strided:
        raise ValueError(
            f"{name} must be floating point ({_NAMES}) of shape (B, L, C), got {x.dtype} of shape {tuple(x.shape)}"
        )


def check_blocks(name: str, z: Tensor) -> None:
    """A sequence in channel blocks, ``(B, C / 16, L, 16)``.

    Raises:
        ValueError: it is not, with its dtype and shape.
    """
    if z.dim() != 4 or z.size(3) != CHANNEL_BLOCK or z.dtype not in DTYPES or z.layout != torch.strided:
        raise ValueError(
            f"{name} must be floating point ({_NAMES}) of shape (B, C / {CHANNEL_BLOCK}, L, {CHANNEL_BLOCK}), got "
            f"{z.dtype} of shape {tuple(z.shape)}"
        )


def check_any_order(name: str, z: Tensor) -> None:
    """A sequence ``(B, L, C)`` or in channel blocks."""
    if is_blocked(z):
        check_blocks(name, z)
    else:
        check_rows(name, z)


def check_linear(u: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    """The parameters of a linear layer for a sequence."""
    inputs = channels_of(u)
    if weight.dim() != 2:
        raise ValueError(f"weight must be ({inputs} in, C out) as (C, {inputs}), got {tuple(weight.shape)}")
    check_like("weight", weight, (weight.size(0), inputs), u)
    if bias is not None:
        check_like("bias", bias, (weight.size(0),), u)


def check_whole_blocks(name: str, channels: int) -> None:
    """Channels that fill their blocks.

    Raises:
        ValueError: they do not, with their number.
    """
    if channels % CHANNEL_BLOCK != 0:
        raise ValueError(f"{name}: {channels} channels do not fill blocks of {CHANNEL_BLOCK}; use (B, L, C)")


def check_like(name: str, t: Tensor, shape: Sequence[int], like: Tensor, dtype: torch.dtype | None = None) -> None:
    """A tensor of one shape and dtype (of ``like``, if missing), where ``like`` is.

    Raises:
        ValueError: it is not, with both.
    """
    dtype = like.dtype if dtype is None else dtype
    check_device(name, t, like)
    if t.dim() != len(shape) or tuple(t.shape) != tuple(shape) or t.dtype != dtype or t.layout != torch.strided:
        raise ValueError(f"{name} must be {dtype} of shape {tuple(shape)}, got {t.dtype} of shape {tuple(t.shape)}")


def check_storage(name: str, t: Tensor) -> None:
    """Whether the memory of ``t`` holds its entries; a storage that was freed or shrunk behind it does not.

    Raises:
        ValueError: it is too small, with both numbers of bytes.
    """
    if t.layout != torch.strided or t.is_meta or t.numel() == 0:
        return
    last = t.storage_offset() + sum((size - 1) * step for size, step in zip(t.shape, t.stride(), strict=True))
    needed, found = (last + 1) * t.itemsize, t.untyped_storage().nbytes()
    if needed > found:
        raise ValueError(f"{name} of shape {tuple(t.shape)} needs a storage of {needed} bytes, but has one of {found}")


def check_device(name: str, t: Tensor, like: Tensor) -> None:
    """Whether ``t`` is where ``like`` is: a kernel is handed addresses, and would read another device's memory.

    Raises:
        ValueError: it is elsewhere, with both devices.
    """
    if t.device != like.device:
        raise ValueError(f"{name} is on {t.device}, but the input on {like.device}: both must be on one device")


def check_weights(name: str, t: Tensor | None, shape: Sequence[int | str], z: Tensor) -> None:
    """Weights beside the sequence ``z``: a floating dtype of their own, not wider than the arithmetic.

    Args:
        shape: what it must be; words stand for any size of at least 1.

    Raises:
        ValueError: shape, dtype or device do not fit.
    """
    if t is None:
        return
    check_device(name, t, z)
    fits = t.dim() == len(shape) and all(
        have >= 1 if isinstance(want, str) else have == want for have, want in zip(t.shape, shape)
    )
    if not fits:
        text = ", ".join(map(str, shape)) + ("," if len(shape) == 1 else "")
        raise ValueError(f"{name} must be ({text}) for an input of shape {tuple(z.shape)}, got {tuple(t.shape)}")
    if t.dtype not in DTYPES or t.layout != torch.strided:
        raise ValueError(f"{name} must be {_NAMES}, got {t.dtype}")
    if t.dtype == torch.float64 and z.dtype != torch.float64:
        raise ValueError(
            f"{name} is torch.float64 beside an input of {z.dtype}, for which everything is computed in torch.float32: "
            f"use {name}.float(), or an input of torch.float64"
        )


def check_mask(mask: Tensor | None, z: Tensor) -> None:
    """A bool mask ``(B, L)`` of ``z``.

    Raises:
        TypeError: no tensor.
        ValueError: another shape, dtype or device.
    """
    if mask is None:
        return
    if not isinstance(mask, Tensor):
        raise TypeError(f"mask must be a bool tensor, got {type(mask).__name__}: torch.tensor(mask)")
    check_device("mask", mask, z)
    shape = (z.size(0), length_of(z))
    if tuple(mask.shape) != shape or mask.dtype != torch.bool or mask.layout != torch.strided:
        raise ValueError(
            f"mask must be a bool tensor of shape {shape}, True where a position is kept; got "
            f"{mask.dtype} of shape {tuple(mask.shape)}"
        )


def check_cu_seqlens(cu_seqlens: Tensor | None, z: Tensor) -> None:
    """Offsets of rows packed into ``z``: shape, dtype and device (their values: :func:`hyena.ops._packing.row_bounds`).

    Raises:
        TypeError: no tensor.
        ValueError: they do not fit.
    """
    if cu_seqlens is None:
        return
    if not isinstance(cu_seqlens, Tensor):
        raise TypeError(
            f"cu_seqlens must be a tensor of offsets, got {type(cu_seqlens).__name__}: "
            "torch.tensor(cu_seqlens, dtype=torch.int32)"
        )
    if cu_seqlens.dim() != 1 or cu_seqlens.size(0) < 2 or cu_seqlens.dtype not in (torch.int32, torch.int64):
        raise ValueError(
            "cu_seqlens must be a 1-D int32 or int64 tensor of at least 2 offsets, (0, end of the first row, …); got "
            f"{cu_seqlens.dtype} of shape {tuple(cu_seqlens.shape)}"
        )
    check_device("cu_seqlens", cu_seqlens, z)
    if z.size(0) != 1:
        raise ValueError(f"packed rows come as one row of shape (1, T, C); got batch {z.size(0)} with cu_seqlens")


def check_row(z: Tensor, mask: Tensor | None, cu_seqlens: Tensor | None, name: str = "z") -> None:
    """A sequence input with its mask and offsets."""
    check_rows(name, z)
    check_beside(z, mask, cu_seqlens)


def check_projections(z: Tensor, mask: Tensor | None, cu_seqlens: Tensor | None) -> None:
    """What a mixing step takes, in any order, with its mask and offsets."""
    check_any_order("z", z)
    check_beside(z, mask, cu_seqlens)


def check_beside(z: Tensor, mask: Tensor | None, cu_seqlens: Tensor | None) -> None:
    """The mask and offsets of a sequence."""
    check_mask(mask, z)
    check_cu_seqlens(cu_seqlens, z)


def check_size(size: int) -> None:
    """Points of a transform.

    Raises:
        ValueError: fewer than one.
    """
    if size < 1:
        raise ValueError(f"a transform needs at least one position, got size={size}")


def longest_in(size: int) -> int:
    """The longest row that a spectrum for ``size`` positions convolves; ``size`` while a trace has no number for it."""
    return size if torch.compiler.is_compiling() or not isinstance(size, int) else points_of(size)


def check_spectrum(z: Tensor, spectrum: Tensor, channels: int, packed: bool, dims: int = 3) -> None:
    """Whether spectra ``(…, G, P+1, 2)`` serve ``channels`` channels of ``z``.

    Raises:
        ValueError: wrong shape, dtype or device, or rows longer than ``P``.
    """
    dtype = compute_dtype(z)
    wrong = spectrum.dim() != dims or spectrum.dtype != dtype or spectrum.layout != torch.strided
    if wrong or spectrum.size(-1) != 2 or spectrum.size(-2) < 2 or spectrum.device != z.device:
        shape = "(G, P + 1, 2), one filter's," if dims == 3 else "(F, G, P + 1, 2)"
        raise ValueError(
            f"the spectrum must be a {dtype} tensor of shape {shape} on {z.device}, as filter_spectrum makes it; got "
            f"{shown(spectrum)}"
        )
    if spectrum.size(-3) == 0 or channels % spectrum.size(-3) != 0:
        raise ValueError(f"spectrum: {channels} channels cannot share {spectrum.size(-3)} filters: not a multiple")
    longest = longest_in(spectrum.size(-2) - 1)
    if not packed and length_of(z) > longest:
        raise ValueError(
            f"spectrum: a row of {length_of(z)} positions needs a spectrum of at least that size; this one was "
            f"built for {longest}"
        )


def check_gates(
    v: Tensor, d: Tensor | None, pre: Tensor | None, post: Tensor | None, cu_seqlens: Tensor | None
) -> None:
    """What every gated convolution asks of its inputs but the filter.

    Raises:
        ValueError: shapes or dtypes that do not fit, with the ones found.
    """
    check_row(v, None, cu_seqlens, "v")
    for name, gate in (("pre", pre), ("post", post)):
        if gate is not None:
            check_like(name, gate, v.shape, v)
    check_weights("d", d, (v.size(2),), v)


def check_gated_conv(
    v: Tensor,
    h: Tensor,
    d: Tensor | None = None,
    pre: Tensor | None = None,
    post: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    causal: bool = True,
) -> None:
    """What :func:`hyena.functional.gated_conv` asks of its arguments.

    Raises:
        ValueError: shapes or dtypes that do not fit, with the ones found.
    """
    check_gates(v, d, pre, post, cu_seqlens)
    check_device("h", h, v)
    own = h.dim() == 3 and h.size(0) == v.size(0)
    if not (h.dim() == 2 or own) or h.size(-2) < 1:
        raise ValueError(
            f"h must be (taps, channels), or ({v.size(0)}, taps, channels) for a filter of its own for each row, got "
            f"{tuple(h.shape)}"
        )
    if h.dtype not in DTYPES or h.layout != torch.strided:
        raise ValueError(f"h must be floating point ({_NAMES}), got {h.dtype}")
    if h.size(-1) < 1 or v.size(2) % h.size(-1) != 0:
        raise ValueError(f"h: {v.size(2)} channels cannot share {h.size(-1)} filters: not a multiple")
    if not causal and h.size(-2) % 2 == 0:
        raise ValueError(f"h: a two-sided filter has an odd number of taps, lags -(K-1) … K-1; got {h.size(-2)}")


def looks_for_nan() -> bool:
    """Whether :func:`check_finite` looks at anything."""
    if torch.compiler.is_compiling() or not torch.is_anomaly_enabled():
        return False
    return not torch._C._are_functorch_transforms_active()  # values under a transform cannot be looked at


def check_finite(**tensors: Tensor | None) -> None:
    """Looks for NaN and infinities under ``torch.autograd.detect_anomaly``, before a transform spreads them over a row.

    Raises:
        RuntimeError: there is one, with the argument, the value and the place of the first.
    """
    if not looks_for_nan():
        return
    for name, t in tensors.items():
        if t is None or t.is_meta:
            continue
        places = t.isfinite().logical_not().nonzero()
        if places.size(0) > 0:
            place = tuple(places[0].tolist())
            raise RuntimeError(
                f"{name} is {t[place].item()} at {place}, the first of {places.size(0)} entries that are not finite: a "
                "transform spreads it over its whole row, earlier positions included (looked at because "
                "torch.autograd.detect_anomaly is on)"
            )
