"""``s_t = p s_{t-1} + x_t`` for diagonal systems that do not change in time, by matrix products over chunks.

Torch's own ``associative_scan`` is not public (2.13), and does more than this needs: with constant poles a chunk is one
product with a triangular matrix of their powers. States at the ends of chunks are the same problem again, ``C`` times
shorter. So time and memory grow with L, and ``log L / log C`` products follow each other.

Dimensions: B batch, L length, P states, n chunks, C positions of a chunk.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

CHUNK = 32


def scan(log_pole: Tensor, x: Tensor, before: Tensor | None = None, chunk: int = CHUNK) -> Tensor:
    """States ``s_t = exp(log_pole) s_{t-1} + x_t``.

    Args:
        log_pole: ``(P,)``, complex or real.
        x: ``(B, L, P)`` in the same dtype.
        before: ``(B, P)``, ``s_{-1}``; zero if missing.
        chunk: C.

    Returns:
        ``(B, L, P)``.
    """
    length, size = x.size(1), min(chunk, x.size(1))
    powers = torch.exp(log_pole[:, None] * torch.arange(size + 1, device=x.device))  # (P, C + 1)
    # Row i of the matrix is p^i … p^0 and zeros: a window of the powers, backwards.
    matrix = F.pad(powers[:, :-1], (size - 1, 0)).unfold(1, size, 1).flip(2)  # (P, C, C)
    chunks = fill_up(x, size, dim=1).unflatten(1, (-1, size))  # (B, n, C, P)
    s = torch.einsum("pij,bnjp->bnip", matrix, chunks)
    if before is None and s.size(1) == 1:
        return s[:, 0, :length]
    first = torch.zeros_like(s[:, 0, 0]) if before is None else before
    past = first[:, None]  # before each chunk
    if s.size(1) > 1:
        ends = scan(log_pole * size, s[:, :-1, -1], before, chunk)
        past = torch.cat([past, ends], dim=1)
    s = s + powers[:, 1:].t() * past[:, :, None]
    return s.flatten(1, 2)[:, :length]


def fill_up(x: Tensor, size: int, dim: int) -> Tensor:
    """``x`` with zeros at the end of ``dim``, which is a multiple of ``size`` then.

    Not by ``F.pad``: where it pads nothing, and in its gradient, its result lies in memory as its input does, which
    torch.compile does not expect of lengths that vary (torch 2.13).
    """
    shape = list(x.shape)
    shape[dim] = -x.size(dim) % size
    return torch.cat([x, x.new_zeros(shape)], dim)
