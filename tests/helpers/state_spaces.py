"""State spaces by definition: dense matrices in float64 and one step after the other, sharing no code with the library.

Dimensions: R rows of weights, G channels, N states, K taps.
"""

from __future__ import annotations

import torch
from torch import Tensor


def discretised(a: Tensor, b: Tensor, dt: Tensor, rule: str) -> tuple[Tensor, Tensor]:
    """``x' = A x + B u`` as ``x <- A_d x + B_d u``: ``(…, N, N)``, ``(…, N)`` and ``(…)`` each."""
    n = a.size(-1)
    if rule == "zoh":  # both at once, as the exponential of [[A, B], [0, 0]] dt
        block = torch.zeros(*a.shape[:-2], n + 1, n + 1, dtype=a.dtype)
        block[..., :n, :n], block[..., :n, n] = a, b
        e = torch.linalg.matrix_exp(dt[..., None, None] * block)
        return e[..., :n, :n], e[..., :n, n]
    assert rule == "bilinear"
    half, eye = 0.5 * dt[..., None, None] * a, torch.eye(n, dtype=a.dtype)
    inverse = torch.linalg.inv(eye - half)
    return inverse @ (eye + half), dt[..., None] * (inverse @ b[..., None])[..., 0]


def impulse_response(a: Tensor, b: Tensor, c: Tensor, length: int) -> Tensor:
    """``Re(C A^t B)`` for ``t = 0 … length-1``, one step after the other: ``(…, length)``."""
    taps, x = [], b
    for _ in range(length):
        taps.append((c * x).sum(-1).real)
        x = (a @ x[..., None])[..., 0]
    return torch.stack(taps, dim=-1)


def convolution(h: Tensor, x: Tensor, behind: Tensor | None = None) -> Tensor:
    """``sum_s h_(t-s) x_s`` by a dense matrix: ``(G, K)`` and ``(B, L, G)``; ``behind`` has lags -1, -2 and so on."""
    length = x.size(1)
    matrix = torch.zeros(h.size(0), length, length, dtype=h.dtype)
    for t in range(length):
        for s in range(length):
            if 0 <= t - s < h.size(1):
                matrix[:, t, s] = h[:, t - s]
            elif behind is not None and 0 <= s - t - 1 < behind.size(1):
                matrix[:, t, s] = behind[:, s - t - 1]
    return torch.einsum("gts,bsg->btg", matrix, x)
