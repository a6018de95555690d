"""Sums of powers, ``h_t = sum_k Re(w_k p_k^t)``: the Vandermonde products that state-space filters are made of.

Dimensions: m modes, K taps.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

# Entries of the arrays (modes x modes) that norms are found from at a time: 64 MB of complex128. Above so many modes
# norms are estimated from taps: all of the first ones, and as many of the rest.
_NORM_ENTRIES = 1 << 22
_NORM_MODES = 128
_NORM_TAPS = 4096

# Powers count as zero below this power of the smallest normal number: 7e-16 in float32, 1e-123 in float64.
_FADED = 0.4

# Numbers in the table of powers of poles that all channels share, at a time: 16 MB in float32.
_TABLE_ENTRIES = 1 << 22


def powers(decay: Tensor, angle: Tensor | None, count: int, first: int = 0) -> Tensor:
    """``p^first …``, ``count`` of them, with ``p = exp(-decay + i angle)``: ``(…)`` -> ``(…, count)``.

    Real without an angle.
    """
    at = torch.arange(first, first + count, device=decay.device, dtype=decay.dtype)
    exponent = -decay[..., None] * at
    # What has faded is zero: processors take a hundred times as long for numbers below the smallest normal one, and
    # products of two tables are kept above it.
    faded = _FADED * math.log(torch.finfo(decay.dtype).tiny)
    modulus = exponent.masked_fill(exponent < faded, -torch.inf).exp()
    return modulus if angle is None else torch.polar(modulus, angle[..., None] * at)


def response(decay: Tensor, angle: Tensor | None, weight: Tensor, count: int) -> Tensor:
    """``sum_k Re(w_k p_k^t)`` for ``t = 0 … count-1``: ``(…, m)`` each -> ``(…, count)``.

    With ``t = W i + j`` it is a product of two tables of about ``sqrt(count)`` powers, ``(w_k p_k^(W i))`` and
    ``(p_k^j)``: besides the taps it needs memory for ``4 m sqrt(count)`` complex numbers a channel, in training too,
    and never for ``m count``. Poles that channels share, ``(…, 1, m)`` with weights ``(…, G, m)``, have one table for
    all of them, in pieces of at most 4M numbers that are computed again for the gradient.
    """
    if not weight.is_complex():  # real poles: the angles are zero
        angle = None
    if decay.dim() > 1 and decay.size(-2) < weight.size(-2):
        return _shared(decay[..., 0, :], None if angle is None else angle[..., 0, :], weight, count)
    width = max(1, int(math.sqrt(count)))  # not isqrt, which tracing lengths that vary does not know
    rows = -(-count // width)
    coarse = weight[..., None] * powers(decay * width, None if angle is None else angle * width, rows)
    return (_left(coarse, -2).transpose(-1, -2) @ _right(powers(decay, angle, width))).flatten(-2)[..., :count]


def _left(x: Tensor, dim: int) -> Tensor:
    """One side of ``Re(a b) = Re a Re b - Im a Im b`` as a real product over ``dim``."""
    return torch.cat([x.real, x.imag], dim=dim) if x.is_complex() else x


def _right(x: Tensor) -> Tensor:
    """The other side, ``(…, m, count)``."""
    return torch.cat([x.real, -x.imag], dim=-2) if x.is_complex() else x


def _shared(decay: Tensor, angle: Tensor | None, weight: Tensor, count: int) -> Tensor:
    """:func:`response` with poles ``(…, m)`` and weights ``(…, G, m)``."""
    left = _left(weight, -1)
    step = max(1, _TABLE_ENTRIES // (2 * decay.numel()))

    def piece(first: int, left: Tensor, decay: Tensor, angle: Tensor | None) -> Tensor:
        return left @ _right(powers(decay, angle, min(step, count - first), first))

    again = count > step and torch.is_grad_enabled() and not torch.compiler.is_compiling()
    parts = [
        checkpoint(piece, first, left, decay, angle, use_reentrant=False) if again else piece(first, left, decay, angle)
        for first in range(0, count, step)
    ]
    return torch.cat(parts, dim=-1)


def norm(decay: Tensor, angle: Tensor | None, weight: Tensor, count: int) -> Tensor:
    """The l2 norms of :func:`response`, ``(…)``: in float64 by sums of geometric series; of many modes an estimate."""
    if weight.size(-1) > _NORM_MODES:
        return _estimate(decay, angle, weight, count).clamp_min(1e-24).sqrt().double()
    shape, modes = weight.shape[:-1], weight.size(-1)
    turn = torch.zeros_like(decay) if angle is None else angle
    terms = (decay.double(), turn.double(), weight.to(torch.complex128))
    parts = [t.expand(weight.shape).reshape(-1, modes) for t in terms]
    each = max(1, _NORM_ENTRIES // modes**2)
    energies = [_energy(d, a, w, count) for d, a, w in zip(*(t.split(each) for t in parts), strict=True)]
    return torch.cat(energies).view(shape).clamp_min(1e-24).sqrt()


def _energy(decay: Tensor, angle: Tensor, weight: Tensor, count: int) -> Tensor:
    energy = torch.zeros_like(decay[:, 0])
    # Re(a) Re(b) = Re(a b + a conj(b)) / 2, for every pair of modes.
    for sign in (1, -1):
        other = weight if sign == 1 else weight.conj()
        log = torch.complex(-decay[..., None] - decay[..., None, :], angle[..., None] + sign * angle[..., None, :])
        series = (1 - torch.exp(count * log)) / (1 - torch.exp(log))
        energy = energy + 0.5 * (weight[..., None] * other[..., None, :] * series).real.sum((-1, -2))
    return energy


def _estimate(decay: Tensor, angle: Tensor | None, weight: Tensor, count: int) -> Tensor:
    start = min(count, _NORM_TAPS)
    energy = response(decay, angle, weight, start).square().sum(-1)
    if count > start:
        stride = -(-(count - start) // _NORM_TAPS)
        weight = weight * powers(decay, angle, 1, start)[..., 0]
        turn = None if angle is None else angle * stride
        energy = energy + stride * response(decay * stride, turn, weight, (count - start) // stride).square().sum(-1)
    return energy
