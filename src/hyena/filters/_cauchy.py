"""Transforms of the taps of systems that are diagonal plus rank 1, by Cauchy sums (arXiv 2111.00396, theorem 3).

Dimensions: S systems, m pairs of conjugate modes, n frequencies.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def response(dt: Tensor, poles: Tensor, p: Tensor, b: Tensor, c: Tensor, length: int) -> Tensor:
    """All ``length`` taps ``(S, length)`` of ``Λ - P P*``, ``B`` and ``C (1 - A^length)`` by the bilinear rule.

    The rule reads the resolvent at ``s = 2i tan(half) / Δ``, with ``2 half`` a frequency of the row. Both conjugates
    together are ``v / (s - λ) + conj = Δ cos (4i sin Re v - 2 cos Re(v conj(z))) / Q`` with ``z = Δ λ`` and ``Q = |z|²
    cos² - 4 sin² - 4i sin cos Re z``: no tangent, and no zero on the circle.

    Args:
        dt: ``Δ``, ``(S, 1)``.
        poles, p, b, c: ``(S, m)``, complex.
        length: of the row.
    """
    half = torch.arange(length // 2 + 1, device=dt.device, dtype=dt.dtype) * (math.pi / length)
    sin, cos, z = half.sin(), half.cos(), dt * poles
    # Numerators of the four sums, C R B, C R P, P* R B and P* R P with the resolvent R.
    tops = torch.stack([part for v in (c * b, c * p, p.conj() * b, p.conj() * p) for part in (v, v * z.conj())], dim=1)
    square = z.real.square() + z.imag.square()
    u, w = torch.addcmul(-4 * sin * sin, square[..., None], cos * cos), z.real[..., None] * (4 * sin * cos)
    scale = torch.addcmul(u * u, w, w).reciprocal()
    sums = torch.complex(tops.real @ (u * scale), tops.real @ (w * scale))  # (S, 8, n)
    s00, s01, s10, s11 = (dt[..., None] * (4j * sin * sums[:, ::2] - 2 * cos * sums[:, 1::2])).unbind(1)
    turn = torch.polar(torch.ones_like(half), half)
    return torch.fft.irfft(turn * (s00 - cos * s01 * s10 / (1 + cos * s11)), n=length)
