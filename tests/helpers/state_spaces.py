"""State spaces by definition: dense matrices in float64 and one step after the other, sharing no code with the library,
and the comparison of a layer with them.

Dimensions: R rows of weights, G channels, N states, K taps.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from hyena.conv import LongConv
from hyena.filters import Filter

Weights = dict[str, Tensor]


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


def check_against_dense(
    h: Filter,
    length: int,
    sides: Callable[[Weights, int], tuple[Tensor, Tensor | None]],
    *,
    outputs: float,
    grads: float,
) -> None:
    """The layer of filters (two of three channels, float64) and every gradient of theirs, beside dense convolutions.

    Args:
        h: the filters; its weights are moved away from the start, which has equal numbers in it.
        length: of the rows.
        sides: taps ahead of filter ``i`` out of weights, and behind where it is two-sided.
        outputs, grads: tolerances, absolute and relative.
    """
    with torch.no_grad():
        for p in h.parameters():
            p.add_(0.1 * torch.randn_like(p))
    conv = LongConv(3, length, 2, filter=h, causal=h.causal, dtype=torch.float64)
    weights = {key: p.detach().clone().requires_grad_() for key, p in h.named_parameters()}
    x, probe = torch.randn(2, length, 3, dtype=torch.float64), torch.randn(2, 2, length, 3, dtype=torch.float64)
    got = torch.stack([conv(x, i) for i in range(2)])
    got.backward(probe)
    want = []
    for i in range(2):
        ahead, behind = sides(weights, i)
        want.append(convolution(ahead, x, behind) + conv.bias[i].detach() * x)
    every = torch.stack(want)
    every.backward(probe)
    torch.testing.assert_close(got, every, rtol=outputs, atol=outputs)
    for key, p in h.named_parameters():
        torch.testing.assert_close(
            p.grad, weights[key].grad, rtol=grads, atol=grads, msg=lambda m, key=key: f"{key}: {m}"
        )
