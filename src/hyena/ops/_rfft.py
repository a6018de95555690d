"""Long convolutions of the fallback: real transforms of twice the length, multiplied and transformed back.

Dimensions: B batch, L length, C channels, G filter channels (C a multiple of G; channel c uses filter c // (C // G)),
P transform length.
"""

from __future__ import annotations

import torch
from torch import Tensor

# Complex numbers that the fallback holds in one piece of a transform (256 MiB in complex64): more channels than fit are
# done in turn, so that a million positions need not hold every channel's transform at once.
_CHUNK = 1 << 25


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


def sectioned_conv(x: Tensor, spectrum: Tensor) -> Tensor:
    """:func:`long_conv` of rows of any length with a filter of up to P taps, P positions at a time."""
    points = spectrum.size(1) - 1
    head, tail = _sectioned(long_conv(_sections(x, points), spectrum), x.size(0)).split(points, dim=3)
    y = head + torch.nn.functional.pad(tail[:, :-1], (0, 0, 0, 0, 1, 0))
    return y.transpose(1, 2).flatten(2)[..., : x.size(2)]


def sectioned_conv_backward(dy: Tensor, x: Tensor, spectrum: Tensor) -> tuple[Tensor, Tensor]:
    """:func:`long_conv_backward` of :func:`sectioned_conv`."""
    points = spectrum.size(1) - 1
    own = _sectioned(_sections(dy, points), x.size(0))[..., :points]
    following = torch.nn.functional.pad(own[:, 1:], (0, 0, 0, 0, 0, 1))
    seen = torch.cat([own, following], dim=3).flatten(0, 1)
    dx, ds = long_conv_backward(seen, _sections(x, points), spectrum)
    return _sectioned(dx, x.size(0))[..., :points].transpose(1, 2).flatten(2)[..., : x.size(2)], ds


def _sections(x: Tensor, points: int) -> Tensor:
    """(B, C, L) -> (B * sections, C, 2P), each followed by P zeros."""
    count = -(-x.size(2) // points)
    parts = torch.nn.functional.pad(x, (0, count * points - x.size(2))).unflatten(2, (count, points))
    return torch.nn.functional.pad(parts.transpose(1, 2).flatten(0, 1), (0, points))


def _sectioned(parts: Tensor, batch: int) -> Tensor:
    """(B * sections, C, 2P) -> (B, sections, C, 2P)."""
    return parts.unflatten(0, (batch, -1))


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
