"""``hyena::add_conv_``: a long convolution added to what is there, ``y += (h conv v)[:, :n]``.

For a step of a decode, where a result of its own, as long as half of the context, would be memory to fetch, fill and
read again.

Dimensions: B batch, L length, n positions of the result, C channels, G filter channels.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hyena.ops._checks import check_rows, check_spectrum, shown
from hyena.ops._layout import compute_dtype
from hyena.ops._library import define
from hyena.ops._rfft import long_conv_piece, pieces
from hyena.ops.spectrum import is_of_kernels, spectrum_rows

# Complex numbers that the fallback transforms at once: 8 MiB in complex64, what a cache may hold.
_CHUNK = 1 << 20


def _add_conv_(y: Tensor, v: Tensor, spectrum: Tensor) -> None:
    if y.numel() == 0:
        return
    if is_of_kernels(spectrum):  # on a device whose kernels do not have this op: row by row, to hold only one
        for row, part in zip(y, v, strict=True):
            row += torch.ops.hyena.gated_conv(part[None], spectrum, None, None, None, None, False)[0, : row.size(0)]
        return
    dtype, s = compute_dtype(v), spectrum_rows(spectrum)
    for g, c in pieces(v.size(0), v.size(2), s, _CHUNK):
        x = v[..., c].to(dtype).transpose(1, 2).contiguous()
        y[..., c] += long_conv_piece(x, s[g])[..., : y.size(1)].transpose(1, 2)


def _check(y: Tensor, v: Tensor, spectrum: Tensor) -> None:
    check_rows("v", v)
    check_spectrum(v, spectrum, v.size(2), False)
    fits = y.dim() == 3 and y.size(0) == v.size(0) and y.size(1) <= v.size(1) and y.size(2) == v.size(2)
    if not fits or y.dtype != v.dtype or y.device != v.device or y.layout != torch.strided:
        raise ValueError(
            f"y must be {v.dtype} of shape ({v.size(0)}, n, {v.size(2)}) with n at most {v.size(1)}, on {v.device}; "
            f"got {shown(y)}"
        )
    if y.numel() > 0 and any(step == 0 and size > 1 for step, size in zip(y.stride(), y.shape)):
        raise ValueError(
            f"y of shape {tuple(y.shape)} is expanded (strides {y.stride()}): several of its entries are one number in "
            "memory, which cannot take several sums; pass y.clone()"
        )


define(
    "add_conv_(Tensor(a!) y, Tensor v, Tensor spectrum) -> ()",
    _add_conv_,
    lambda y, v, spectrum: None,
    check=_check,
    plain=_add_conv_,
)


def add_conv_(y: Tensor, v: Tensor, spectrum: Tensor) -> None:
    """Checked call of ``hyena::add_conv_``: ``y += (h conv v)[:, :n]``. No gradient passes through it.

    Args:
        y: ``(B, n, C)``, n at most L, changed in place; any strides, no memory in common with ``v``.
        v: ``(B, L, C)`` of the same dtype.
        spectrum: ``(G, P+1, 2)`` from :func:`hyena.ops.filter_spectrum`.

    Raises:
        ValueError: shapes, dtypes or sizes that do not fit, with the ones found, or gradients that are asked for.
    """
    _check(y, v, spectrum)
    if torch.is_grad_enabled() and (y.requires_grad or v.requires_grad or spectrum.requires_grad):
        raise ValueError("add_conv_ has no gradient: call it under torch.no_grad(), or use gated_conv")
    if y.numel() > 0:
        torch.ops.hyena.add_conv_(y, v, spectrum)
