"""Long convolutions in real matrix products, for runtimes without a fast Fourier transform of any length.

A causal convolution of ``L`` positions is the real part of a product modulo ``z^P = i`` with ``P >= L`` (the
right-angle convolution; docs/maths.md): what wraps around is multiplied by ``i``. Its transform evaluates at ``P``
points, ``X_k = sum_t x_t w_P^(t (k - 1/4))`` with ``w_n = exp(-2 pi i / n)``, and with ``P = R S``, ``t = S a + b``,
``k = c + R d`` that is two matrix products with a factor between (Gentleman and Sande 1966; Bailey 1990 has it as "four
steps")::

    X_{c + R d} = sum_b w_S^(b d)  w_P^(b (c - 1/4))  sum_a w_R^(a (c - 1/4)) x_{S a + b}

``R`` is a constant and ``S = ceil(L / R)``, so that any length goes, in graphs that do not know it. Sequences stay
``(B, L, C)``: both products are over a middle axis, and nothing is transposed. The first product has a real input, the
last a real output, so a position costs ``2 R + 4 S`` products a transform.

Dimensions: B batch, L length, C channels, G filter channels, K taps; P = R S points.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

# (longest row, R): the first that holds a length, or its bound where it is dynamic. R is a power of two near the root
# of twice the length, where 2 R + 4 S is least; shorter rows than the bound then cost little more than 2 R each.
_RADICES = ((256, 16), (1024, 32), (4096, 64), (16384, 128), (65536, 256))
_LARGEST = 512


class _Tables(NamedTuple):
    """The factors of one transform, in the dtype of the arithmetic.

    Attributes:
        columns: ``(2 R, R)``, cosines over sines of the first product.
        turn: ``(R, S, 1)`` each, real and imaginary parts of the factors between.
        rows: ``(2 S, 2 S)``, of the second product, on real over imaginary parts.
        points: ``(1,)``, P.
    """

    columns: Tensor
    turn: tuple[Tensor, Tensor]
    rows: Tensor
    points: Tensor


def _radix(length: Any) -> int:
    """R for a row of ``length`` positions, of which a trace may know no more than a bound."""
    # Imported here because it costs a third of a second, and only tracing needs it.
    from torch.fx.experimental.symbolic_shapes import statically_known_true

    for longest, radix in _RADICES:
        if statically_known_true(length <= longest):
            return radix
    return _LARGEST


def _circle(numerator: Tensor, points: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Cosine and sine of ``-2 pi numerator / points``; the fraction is reduced in integers."""
    angle = torch.remainder(numerator, points).to(dtype) * (-2 * math.pi) / points.to(dtype)
    return torch.cos(angle), torch.sin(angle)


def _tables(radix: int, other: Any, like: Tensor) -> _Tables:
    at: dict[str, Any] = {"device": like.device, "dtype": torch.int64}
    a, b = torch.arange(radix, **at), torch.arange(other, **at)
    # As tensors: runtimes take numbers that depend on a shape in few places.
    first, second = a[-1:] + 1, b[-1:] + 1
    quarter = 4 * a - 1  # 4 (c - 1/4)
    cosine, sine = _circle(quarter[:, None] * a, 4 * first, like.dtype)  # (R of c, R of a)
    turn = _circle(quarter[:, None] * b, 4 * first * second, like.dtype)  # (R of c, S)
    real, imag = _circle(b[:, None] * b, second, like.dtype)  # (S of d, S of b)
    rows = torch.cat([torch.cat([real, -imag], dim=1), torch.cat([imag, real], dim=1)])
    points = (first * second).to(like.dtype)
    return _Tables(torch.cat([cosine, sine]), (turn[0][..., None], turn[1][..., None]), rows, points)


def _forward(x: Tensor, t: _Tables, radix: int, other: Any) -> tuple[Tensor, Tensor]:
    """Real ``(B, P, C)`` to real and imaginary parts of the transform, ``(B, R, S, C)`` each."""
    batch, channels = x.size(0), x.size(2)
    y = torch.matmul(t.columns, x.reshape(batch, radix, other * channels))
    y = y.reshape(batch, 2, radix, other, channels)
    real, imag = y[:, 0], y[:, 1]
    cosine, sine = t.turn
    y = torch.cat([real * cosine - imag * sine, real * sine + imag * cosine], dim=2)
    y = torch.matmul(t.rows, y)  # (B, R, 2 S, C)
    return y[:, :, :other], y[:, :, other:]


def _inverse(real: Tensor, imag: Tensor, t: _Tables, radix: int, other: Any) -> Tensor:
    """The real part ``(B, P, C)`` of the inverse of :func:`_forward`: every matrix is unitary but for its size."""
    batch, channels = real.size(0), real.size(3)
    y = torch.matmul(t.rows.t(), torch.cat([real, imag], dim=2))
    real, imag = y[:, :, :other], y[:, :, other:]
    cosine, sine = t.turn
    y = torch.stack([real * cosine + imag * sine, imag * cosine - real * sine], dim=1)
    y = torch.matmul(t.columns.t(), y.reshape(batch, 2 * radix, other * channels))
    return y.reshape(batch, radix * other, channels) / t.points


def _spectrum(taps: Tensor, t: _Tables, radix: int, other: Any) -> tuple[Tensor, Tensor]:
    """Of taps ``(K, G)``, or two-sided ``(2, K, G)`` as :func:`sides` has them: ``(1, R, S, G)`` each."""
    points, count = radix * other, taps.size(-2)
    if taps.dim() == 2:
        return _forward(F.pad(taps, (0, 0, 0, points - count))[None], t, radix, other)
    # Lag -k stands at P - k, times -i: what wraps around there is turned by i, and real again.
    ahead, behind = taps[0], taps[1]
    both = torch.cat([F.pad(ahead, (0, 0, 0, points - count)), F.pad(behind, (0, 0, points - count, 0))], dim=1)
    real, imag = _forward(both[None], t, radix, other)
    groups = taps.size(2)
    return real[..., :groups] + imag[..., groups:], imag[..., :groups] - real[..., groups:]


def sides(h: Tensor) -> Tensor:
    """Two-sided taps ``(F, 2K-1, G)``, lags ``-(K-1) … K-1``, as ``(F, 2, K, G)``.

    The first half has lags ``0 … K-1``, the second a zero and lags ``-(K-1) … -1``.
    """
    taps = (h.size(1) + 1) // 2
    return torch.stack([h[:, taps - 1 :], F.pad(h[:, : taps - 1], (0, 0, 1, 0))], dim=1)


def long_conv(x: Tensor, taps: Tensor) -> Tensor:
    """``h conv x`` for x ``(B, L, C)`` and taps ``(K, G)``, or two-sided :func:`sides` ``(2, K, G)`` of one filter.

    Channel ``c`` uses filter ``c // (C // G)``. Nothing wraps around; taps beyond the row do nothing.
    """
    length, channels, groups = x.size(1), x.size(2), taps.size(-1)
    radix = _radix(length)
    # Where a trace has no number for it, one row more than needed: a trace takes sizes of 1 for constants.
    other = -(-length // radix) if isinstance(length, int) else (length + 2 * radix - 1) // radix
    t = _tables(radix, other, x)
    hr, hi = _spectrum(taps.to(x.dtype), t, radix, other)
    if groups != channels:
        hr, hi = (s[..., None].expand(-1, -1, -1, -1, channels // groups).flatten(3) for s in (hr, hi))
    xr, xi = _forward(F.pad(x, (0, 0, 0, radix * other - length)), t, radix, other)
    y = _inverse(xr * hr - xi * hi, xr * hi + xi * hr, t, radix, other)
    return y[:, :length]
