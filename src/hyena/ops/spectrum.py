"""``hyena::filter_spectrum``: a filter's spectrum, computed once and used by every row of the batch.

Dimensions: F filters, K taps, G filter channels, P transform length (see ``transform_length``).

The result has shape ``(F, G, room, 2)``, real: ``room`` is ``size + 1``, or a little more (see below), and ``P`` is
``points_of(size)`` (``size`` itself, if that is a fast length). The order of its entries is the backend's that made it:
the fallback keeps the ``P + 1`` real-FFT coefficients of ``2P`` points, kernels keep ``P`` coefficients of the
right-angle transform in permuted order. It is for handing back to ``gated_conv`` and ``recurrence`` on the same device,
never for storing.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from hyena.ops._checks import DTYPES, check_finite, check_like, check_size, longest_in
from hyena.ops._derivatives import Group, Multilinear
from hyena.ops._extension import EXTENSION
from hyena.ops._layout import compute_dtype, points_of
from hyena.ops._library import define, has_kernel


def _placed(h: Tensor, points: int, causal: bool) -> Tensor:
    """Taps at their lags modulo ``2P``: (F, K, G) or (F, 2K-1, G) -> (F, G, 2P)."""
    rows = h.to(compute_dtype(h)).transpose(1, 2)
    if causal:
        return torch.nn.functional.pad(rows, (0, 2 * points - rows.size(2)))
    taps = (rows.size(2) + 1) // 2
    gap = rows.new_zeros(*rows.shape[:2], 2 * points - rows.size(2))
    return torch.cat([rows[..., taps - 1 :], gap, rows[..., : taps - 1]], dim=-1)


def _filter_spectrum(h: Tensor, size: int, causal: bool) -> Tensor:
    points = points_of(size)
    if h.size(0) == 0 or h.size(2) == 0:  # FFT libraries refuse empty batches
        return h.new_zeros(h.size(0), h.size(2), size + 1, 2, dtype=compute_dtype(h))
    s = torch.view_as_real(torch.fft.rfft(_placed(h, points, causal)))
    return torch.nn.functional.pad(s, (0, 0, 0, size - points)).contiguous()


def spectrum_rows(spectrum: Tensor) -> Tensor:
    """The fallback's own view of a spectrum: the ``P + 1`` complex coefficients, ``(…, G, P + 1)``."""
    return torch.view_as_complex(spectrum.contiguous())[..., : points_of(spectrum.size(-2) - 1) + 1]


def spectrum_gradient(ds: Tensor, spectrum: Tensor) -> Tensor:
    """A gradient of ``spectrum_rows(spectrum)`` as a gradient of ``spectrum``."""
    unused = spectrum.size(-2) - ds.size(-1)
    return torch.nn.functional.pad(torch.view_as_real(ds), (0, 0, 0, unused)).contiguous()


def _filter_spectrum_backward(ds: Tensor, h: Tensor, size: int, causal: bool) -> Tensor:
    # The adjoint of rfft: the inner coefficients stand for two of the full transform each, so irfft must count them
    # half.
    if h.numel() == 0:
        return torch.zeros_like(h, memory_format=torch.contiguous_format)
    g = spectrum_rows(ds.contiguous())
    half = torch.full((g.size(-1),), 0.5, dtype=ds.dtype, device=ds.device)
    half[0] = half[-1] = 1.0
    placed = torch.fft.irfft(g * half, n=2 * (g.size(-1) - 1), norm="forward")
    if causal:
        dh = placed[..., : h.size(1)]
    else:
        taps = (h.size(1) + 1) // 2
        dh = torch.cat([placed[..., placed.size(-1) - (taps - 1) :], placed[..., :taps]], dim=-1)
    return dh.transpose(1, 2).to(h.dtype).contiguous()


def is_of_kernels(spectrum: Tensor) -> bool:
    """Whether kernels have made the spectrum, so that the fallback cannot read it."""
    device, points = spectrum.device, points_of(spectrum.size(-2) - 1)
    return has_kernel("filter_spectrum", device, spectrum.dtype) and EXTENSION.takes(device, spectrum.dtype, points)


def taps_of(spectrum: Tensor) -> Tensor:
    """The taps ``(F, 2P-1, G)``, lags ``-(P-1) … P-1``, of a spectrum of whatever backend; of kernels' differentiable.

    The transform of kernels is a multiple of an isometry on such filters: its adjoint brings the taps back.
    """
    size = spectrum.size(-2) - 1
    stacked = spectrum.reshape(-1, *spectrum.shape[-3:])
    points = points_of(size)
    if is_of_kernels(spectrum):
        like = spectrum.new_empty(stacked.size(0), 2 * points - 1, stacked.size(1))
        return torch.ops.hyena.filter_spectrum_backward(stacked, like, size, False) * points
    placed = torch.fft.irfft(spectrum_rows(stacked), n=2 * points)
    return torch.cat([placed[..., points + 1 :], placed[..., :points]], dim=-1).transpose(1, 2)


def move_spectrum(spectrum: Tensor, device: torch.device | str) -> Tensor:
    """A spectrum on another device, as the backend there would have made it."""
    device = torch.empty(0, device=device).device  # with its index: GPUs of two models have two layouts
    if device == spectrum.device or spectrum.numel() == 0:
        return spectrum.to(device)
    taps = taps_of(spectrum).to(device)
    return torch.ops.hyena.filter_spectrum(taps, spectrum.size(-2) - 1, False).view(spectrum.shape)


def _check(h: Tensor, size: int, causal: bool) -> None:
    if h.dim() != 3 or h.dtype not in DTYPES or h.layout != torch.strided:
        raise ValueError(
            f"h: filters must be floating point of shape (F, K, G), got {h.dtype} of shape {tuple(h.shape)}"
        )
    check_size(size)
    if h.size(1) < 1:
        raise ValueError(f"h: filters need at least one tap, got shape {tuple(h.shape)}")
    if not causal and h.size(1) % 2 == 0:
        raise ValueError(f"h: a two-sided filter has an odd number of taps, lags -(K-1) … K-1; got {h.size(1)}")
    taps, most = h.size(1) if causal else (h.size(1) + 1) // 2, longest_in(size)
    if taps > most:
        raise ValueError(
            f"h: a filter of {taps} lags does not fit a transform of {most} positions: cut it to {most} lags"
        )


def _check_backward(ds: Tensor, h: Tensor, size: int, causal: bool) -> None:
    _check(h, size, causal)
    check_like("ds", ds, (h.size(0), h.size(2), size + 1, 2), h, compute_dtype(h))


_RULES = Multilinear(
    "filter_spectrum",
    ("h", "size", "causal"),
    [Group(("h",))],
    ("h",),
    rows=("h",),
    backward_rows=("dy", "h"),
)
define(
    "filter_spectrum(Tensor h, SymInt size, bool causal) -> Tensor",
    _filter_spectrum,
    lambda h, size, causal: h.new_empty(h.size(0), h.size(2), size + 1, 2, dtype=compute_dtype(h)),
    check=_check,
    rule=_RULES.rule,
)
define(
    "filter_spectrum_backward(Tensor ds, Tensor h, SymInt size, bool causal) -> Tensor",
    _filter_spectrum_backward,
    lambda ds, h, size, causal: h.new_empty(h.shape),
    check=_check_backward,
    rule=_RULES.backward_rule,
)


def _with_aligned_room(size: int) -> int:
    """``size`` or a little more, so that ``size + 1`` is a multiple of 16, or of 4 or 2 where that is another length.

    Of 16, every filter begins at a multiple of 128 bytes, which is what a GPU reads at a time. A few small sizes stay;
    so do sizes that a trace has no number for, since it must see that they are at least the length of a row.
    """
    points: Callable[[int], int] = points_of
    if torch.compiler.is_compiling() or not isinstance(size, int):
        # Imported here because it costs a third of a second, and only tracing needs it.
        from torch.fx.experimental.symbolic_shapes import has_static_value

        if not has_static_value(size):
            return size
        size, points = int(size), points_of.__wrapped__  # a trace looks through the cache, and warns of it
    for step in (16, 4, 2):
        if points(size | (step - 1)) == points(size):
            return size | (step - 1)
    return size


def spectrum_room(size: int) -> int:
    """Entries of each filter's spectrum that :func:`filter_spectrum` makes for ``size``, its third dimension."""
    return _with_aligned_room(size) + 1


def filter_spectrum(h: Tensor, size: int, causal: bool = True) -> Tensor:
    """Spectrum of filters for :func:`hyena.ops.gated_conv` and :func:`hyena.ops.recurrence`.

    Args:
        h: ``(F, K, G)`` taps of lags ``0 … K-1``; two-sided ``(F, 2K-1, G)``, lags ``-(K-1) … K-1``.
        size: from ``transform_length``; rows of up to ``size`` positions can be convolved (``points_of(size)`` of them,
            where ``size`` is not a fast length).
        causal: whether ``h`` has lags from 0 on, or two-sided ones.

    Raises:
        ValueError: more taps than positions: cut the filter first, since it would wrap around.
    """
    _check(h, size, causal)
    check_finite(h=h)
    return torch.ops.hyena.filter_spectrum(h, _with_aligned_room(size), causal)
