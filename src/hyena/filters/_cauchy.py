"""Taps of systems that are diagonal plus rank 1, by Cauchy sums (arXiv 2111.00396, theorem 3).

Dimensions: S systems, m pairs of conjugate modes, n frequencies.
"""

from __future__ import annotations

import math
from typing import Any

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
    numerators = (part for v in (c * b, c * p, p.conj() * b, p.conj() * p) for part in (v.real, (v * z.conj()).real))
    square = z.real.square() + z.imag.square()
    sums = torch.complex(*_Sums.apply(square, z.real, torch.stack(list(numerators), dim=1), sin, cos))  # (S, 8, n)
    s00, s01, s10, s11 = (dt[..., None] * (4j * sin * sums[:, ::2] - 2 * cos * sums[:, 1::2])).unbind(1)
    turn = torch.polar(torch.ones_like(half), half)
    return torch.fft.irfft(turn * (s00 - cos * s01 * s10 / (1 + cos * s11)), n=length)


class _Sums(torch.autograd.Function):
    """``sum_k v_k / Q_k``, real and imaginary ``(S, 8, n)``, of ``|z|²``, ``Re z`` ``(S, m)``, ``v`` ``(S, 8, m)``.

    Keeps its arguments alone, and makes ``1 / Q`` again for the gradient, which has gradients of every order.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(square: Tensor, rate: Tensor, v: Tensor, sin: Tensor, cos: Tensor) -> tuple[Tensor, Tensor]:
        re, im = _reciprocal(square, rate, sin, cos)
        return v @ re, v @ im

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor]) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, g: Tensor, h: Tensor) -> tuple[Tensor | None, ...]:
        square, rate, v, sin, cos = ctx.saved_tensors
        re, im = _reciprocal(square, rate, sin, cos)
        dv = torch.baddbmm(g @ re.mT, h, im.mT)
        # The derivative of 1 / Q is -1 / Q², whose parts are these; those of the sums' gradient are a and b.
        a, b = v.mT @ g, v.mT @ h
        re, im = (im - re) * (im + re), _times(_times(re, im), -2)
        dsquare = torch.addcmul(a * re, b, im) @ (cos * cos)
        drate = torch.addcmul(_times(b, re), a, im, value=-1) @ (-4 * sin * cos)
        return dsquare, drate, dv, None, None


def _reciprocal(square: Tensor, rate: Tensor, sin: Tensor, cos: Tensor) -> tuple[Tensor, Tensor]:
    """Real and imaginary part of ``1 / Q``, ``(S, m, n)``."""
    re, im = torch.addcmul(-4 * sin * sin, square[..., None], cos * cos), rate[..., None] * (4 * sin * cos)
    scale = torch.addcmul(re * re, im, im).reciprocal_()
    return _times(re, scale), _times(im, scale)


def _times(x: Tensor, factor: Tensor | float) -> Tensor:
    """``x * factor``; in place, since such arrays are large, unless a gradient of the gradient needs ``x``."""
    return x * factor if torch.is_grad_enabled() else x.mul_(factor)
