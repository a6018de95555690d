"""Hyena's operations by definition: explicit Toeplitz matrices in float64, sharing no code with the library.

Everything here is a sum of products of its inputs, so autograd through it gives the gradients to compare with, and the
same function of squared inputs gives the size that rounding errors are measured against (see ``tolerances.py``).

Dimensions: B batch, L length, C channels, G filter channels (channel c uses filter c // (C // G)), N order, F long
filters, M heads.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

# A long row's Toeplitz matrix is multiplied block by block: blocks on one diagonal are equal, so few are built, and
# each is multiplied once.
BLOCK = 512

Rows = list[tuple[int, int]]


def toeplitz_block(h: Tensor, first: int, offset: int, size: int) -> Tensor | None:
    """``T[c, t, s]`` = the tap at lag ``offset + t - s``, ``h[0]`` being at lag ``first``; None if all zero."""
    at = torch.arange(size)
    index = offset + at[:, None] - at - first
    inside = (index >= 0) & (index < h.size(0))
    if not inside.any():
        return None
    return (h[index.clamp(0, h.size(0) - 1)] * inside[..., None]).permute(2, 0, 1)


def long_conv(x: Tensor, h: Tensor, *, causal: bool = True) -> Tensor:
    """``y[b, t, c] = sum_s h[t - s, c] x[b, s, c]``: x (B, L, C), h (K, G) or two-sided (2K-1, G)."""
    x, h = x.double(), h.double().repeat_interleave(x.size(2) // h.size(1), dim=1)
    first = 0 if causal else -((h.size(0) - 1) // 2)
    length = x.size(1)
    size = max(1, min(length, BLOCK))
    count = -(-length // size)
    parts = torch.nn.functional.pad(x, (0, 0, 0, count * size - length)).unflatten(1, (count, size))
    y = torch.zeros_like(parts)
    for ahead in range(1 - count, count):  # by so many blocks the outputs are later than the inputs
        block = toeplitz_block(h, first, ahead * size, size)
        if block is not None:
            term = torch.einsum("cts,bnsc->bntc", block, parts[:, max(0, -ahead) : count - max(0, ahead)])
            y = y + torch.nn.functional.pad(term, (0, 0, 0, 0, max(0, ahead), max(0, -ahead)))
    return y.flatten(1, 2)[:, :length]


def keep(x: Tensor, mask: Tensor | None) -> Tensor:
    """Zero where the mask is False, whatever stands there."""
    return x if mask is None else torch.where(mask[..., None], x, 0.0)


def by_row(fn: Callable[..., Tensor], rows: Rows | None, *tensors: Tensor | None) -> Tensor:
    """``fn`` of each packed row alone, put together again."""
    if rows is None:
        return fn(*tensors)
    parts = [fn(*(None if t is None else t[:, a:b] for t in tensors)) for a, b in rows if b > a]
    return torch.cat(parts, dim=1)


def short_conv(
    z: Tensor, weight: Tensor, bias: Tensor | None = None, mask: Tensor | None = None, rows: Rows | None = None
) -> Tensor:
    """Depthwise causal convolution, masked before and after; the last of the taps is the current position."""

    def one(z: Tensor, mask: Tensor | None) -> Tensor:
        y = long_conv(keep(z.double(), mask), weight.flip(1).T)
        return keep(y if bias is None else y + bias.double(), mask)

    return by_row(one, rows, z, mask)


def gated_conv(
    v: Tensor,
    h: Tensor,
    d: Tensor | None = None,
    pre: Tensor | None = None,
    post: Tensor | None = None,
    *,
    causal: bool = True,
    rows: Rows | None = None,
) -> Tensor:
    """``post * (h conv (pre * v) + d * (pre * v))``."""

    def one(v: Tensor, pre: Tensor | None, post: Tensor | None) -> Tensor:
        p = v.double() if pre is None else pre.double() * v.double()
        y = long_conv(p, h, causal=causal)
        y = y if d is None else y + d.double() * p
        return y if post is None else post.double() * y

    return by_row(one, rows, v, pre, post)


def recurrence(
    parts: list[Tensor],
    h: Tensor,
    d: Tensor,
    *,
    causal: bool = True,
    num_heads: int = 1,
    head_mixing: Tensor | None = None,
) -> Tensor:
    """From gates and value to ``y``: parts are ``x^0 … x^{N-1}, v``, each (B, L, C); h (F, K, G), d (F, G) or (F, C).

    ``F = N - 1`` filters make the released recurrence, ``F = N`` the paper's. ``head_mixing`` (F, M, M) mixes heads
    after each convolution: head k gets the sum of heads j weighted by ``[j, k]``.
    """
    *x, v = (p.double() for p in parts)
    gates = list(x[:0:-1])  # x^{N-1} … x^1
    if h.size(0) == len(x):
        gates = [None, *gates]
    outer = False  # whether v is (B, L, M, C/M, C/M), an outer product inside each head
    for i, gate in enumerate(gates):
        if gate is not None:
            v, outer = _gate(gate, v, outer, num_heads)
        flat = v.flatten(2)
        bias = d[i].double().repeat_interleave(flat.size(2) // d.size(1))
        flat = long_conv(flat, h[i], causal=causal) + bias * flat
        if head_mixing is not None:
            heads, into = flat.chunk(num_heads, dim=2), head_mixing[i].double().unbind(1)
            mixed = [sum(w * head for w, head in zip(column, heads, strict=True)) for column in into]
            flat = torch.cat(mixed, dim=2)
        v = flat.reshape(v.shape)
    return _gate(x[0], v, outer, num_heads)[0] if outer else x[0] * v


def _gate(x: Tensor, v: Tensor, outer: bool, heads: int) -> tuple[Tensor, bool]:
    """Multiplies by a gate; with heads, forms the outer product inside each head, or contracts it."""
    if heads == 1:
        return x * v, False
    x = x.unflatten(2, (heads, -1))
    if outer:
        return (x[..., None] * v).sum(3).flatten(2), False
    return x[..., None] * v.unflatten(2, (heads, -1))[..., None, :], True


def recurrence_of_z(
    z: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    h: Tensor,
    d: Tensor,
    mask: Tensor | None = None,
    *,
    order: int,
    causal: bool = True,
    rows: Rows | None = None,
    num_heads: int = 1,
) -> Tensor:
    """The mixing step from z (B, L, (N+1) C) to y (B, L, C)."""

    def one(z: Tensor, mask: Tensor | None) -> Tensor:
        parts = short_conv(z, weight, bias, mask).chunk(order + 1, dim=2)
        return recurrence(list(parts), h, d, causal=causal, num_heads=num_heads)

    return by_row(one, rows, z, mask)
