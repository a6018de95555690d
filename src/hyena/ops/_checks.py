"""What the ops ask of their arguments. Errors name the argument and repeat its shape, dtype or device."""

from __future__ import annotations

import torch
from torch import Tensor

from hyena.ops._layout import compute_dtype


def check_devices(z: Tensor, **others: Tensor | None) -> None:
    """Whether everything is where ``z`` is: a kernel is handed addresses, and would read another device's memory.

    Raises:
        ValueError: something is elsewhere, with its name.
    """
    for name, t in others.items():
        if t is not None and t.device != z.device:
            raise ValueError(f"{name} is on {t.device}, but the input on {z.device}: both must be on one device")


def check_row(z: Tensor, mask: Tensor | None, cu_seqlens: Tensor | None) -> None:
    """Checks what every op asks of its sequence input, mask and offsets.

    Raises:
        ValueError: the shapes or dtypes do not fit, with the ones found.
    """
    if z.dim() != 3 or not z.is_floating_point():
        raise ValueError(
            f"expected a floating point tensor of shape (B, L, C), got {z.dtype} of shape {tuple(z.shape)}"
        )
    if z.size(1) < 1:
        raise ValueError(f"expected at least one position, got a tensor of shape {tuple(z.shape)}")
    if mask is not None and (mask.shape != z.shape[:2] or mask.dtype != torch.bool):
        raise ValueError(
            f"mask must be a bool tensor of shape {tuple(z.shape[:2])}, True where a position is kept; got "
            f"{mask.dtype} of shape {tuple(mask.shape)}"
        )
    check_devices(z, mask=mask)
    if cu_seqlens is not None:
        check_cu_seqlens(cu_seqlens, z.size(0), z.size(1))


def check_cu_seqlens(cu_seqlens: Tensor, batch: int, total: int) -> None:
    """Shape and dtype of ``cu_seqlens`` (its values are checked by :func:`row_bounds`)."""
    if cu_seqlens.dim() != 1 or cu_seqlens.size(0) < 2 or cu_seqlens.dtype not in (torch.int32, torch.int64):
        raise ValueError(
            f"cu_seqlens must be a 1-D int32 or int64 tensor of at least 2 offsets, got {cu_seqlens.dtype} of shape "
            f"{tuple(cu_seqlens.shape)}"
        )
    if batch != 1:
        raise ValueError(f"packed rows come as one row of shape (1, T, C); got batch {batch} with cu_seqlens")


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


def check_gates(
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
