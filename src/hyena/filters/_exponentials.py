"""Sums of powers, ``h_t = sum_k Re(w_k p_k^t)``: the Vandermonde products that state-space filters are made of.

Dimensions: m modes, K taps.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

# Entries of the arrays (modes x modes) that norms are found from at a time: 64 MB of complex128.
_NORM_ENTRIES = 1 << 22


def powers(decay: Tensor, angle: Tensor | None, count: int) -> Tensor:
    """``p^0 … p^(count-1)`` with ``p = exp(-decay + i angle)``: ``(…)`` -> ``(…, count)``; real without an angle."""
    at = torch.arange(count, device=decay.device, dtype=decay.dtype)
    modulus = torch.exp(-decay[..., None] * at)
    return modulus if angle is None else torch.polar(modulus, angle[..., None] * at)


def response(decay: Tensor, angle: Tensor | None, weight: Tensor, count: int) -> Tensor:
    """``sum_k Re(w_k p_k^t)`` for ``t = 0 … count-1``: ``(…, m)`` each -> ``(…, count)``.

    With ``t = W i + j`` it is a product of two tables of about ``sqrt(count)`` powers, ``(w_k p_k^(W i))`` and
    ``(p_k^j)``: besides the taps it needs memory for ``4 m sqrt(count)`` complex numbers a channel, in training too,
    and never for ``m count``.
    """
    width = max(1, math.isqrt(count))
    rows = -(-count // width)
    if not weight.is_complex():  # real poles: the angles are zero
        angle = None
    coarse = weight[..., None] * powers(decay * width, None if angle is None else angle * width, rows)
    fine = powers(decay, angle, width)
    if angle is not None:  # Re(a b) = Re a Re b - Im a Im b, as one real product
        coarse = torch.cat([coarse.real, coarse.imag], dim=-2)
        fine = torch.cat([fine.real, -fine.imag], dim=-2)
    return (coarse.transpose(-1, -2) @ fine).flatten(-2)[..., :count]


def norm(decay: Tensor, angle: Tensor | None, weight: Tensor, count: int) -> Tensor:
    """The l2 norms of :func:`response`, ``(…)``, in float64: sums of geometric series, no taps."""
    shape, modes = decay.shape[:-1], decay.size(-1)
    turn = torch.zeros_like(decay) if angle is None else angle
    parts = [t.reshape(-1, modes) for t in (decay.double(), turn.double(), weight.to(torch.complex128))]
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
