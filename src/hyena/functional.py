"""Hyena's operations as functions of tensors.

Dimensions: B batch, L length, C channels, K taps, N order, F long filters, M heads.
"""

from __future__ import annotations

from typing import Any

import opt_einsum
import torch
from torch import Tensor

from hyena import ops

__all__ = ["fft_conv", "gated_conv", "hyena_matrix", "short_conv", "toeplitz"]


def short_conv(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, mask: Tensor | None = None, cu_seqlens: Tensor | None = None
) -> Tensor:
    """Depthwise causal convolution of a few taps.

    ``F.conv1d(F.pad(x.mT, (taps - 1, 0)), weight[:, None], bias, groups=C).mT``

    Args:
        x: ``(B, L, C)``, any strides.
        weight: ``(C, taps)``; the last tap multiplies the current position, as in ``nn.Conv1d``.
        bias: ``(C,)``.
        mask: ``(B, L)`` bool, True = keep; applied to ``x`` and again to the result, so that the bias does not leak.
        cu_seqlens: ``(rows + 1,)`` int32 or int64 offsets of rows packed into one; then ``B = 1``.

    Returns:
        ``(B, L, C)`` in the dtype and memory order of ``x``.

    Raises:
        ValueError: shapes or dtypes that do not fit.
    """
    return ops.short_conv(x, weight, bias, mask, cu_seqlens)


def fft_conv(x: Tensor, h: Tensor, d: Tensor | None = None, *, causal: bool = True) -> Tensor:
    """Long convolution along the sequence in ``O(L log L)``, causal or two-sided, without wrap-around at any length.

    ``torch.einsum("cts,bsc->btc", toeplitz(h, L, causal=causal), x) + d * x``

    Args:
        x: ``(B, L, C)``, any strides.
        h: ``(K, G)`` taps of lags ``0 … K-1``, or ``(2K-1, G)`` of lags ``-(K-1) … K-1`` with ``causal=False``. ``C``
            is a multiple of ``G``; channel ``c`` uses filter ``c // (C // G)``. Lags beyond the input do nothing.
        d: ``(C,)`` weight of the input itself.

    Returns:
        ``(B, L, C)`` in the dtype and memory order of ``x``. It is computed in float32, in float64 for float64; few
        taps are applied one by one where that is faster.

    Raises:
        ValueError: shapes or dtypes that do not fit.
    """
    return gated_conv(x, h, d, causal=causal)


def gated_conv(
    v: Tensor,
    h: Tensor,
    d: Tensor | None = None,
    pre: Tensor | None = None,
    post: Tensor | None = None,
    *,
    causal: bool = True,
    cu_seqlens: Tensor | None = None,
    max_seqlen: int | None = None,
) -> Tensor:
    """Long convolution between two gates.

    ``post * fft_conv(pre * v, h, d, causal=causal)``

    Args:
        v, pre, post: ``(B, L, C)``, any strides.
        h, d, causal: as in :func:`fft_conv`.
        cu_seqlens: ``(rows + 1,)`` int32 or int64 offsets of rows packed into one; then ``B = 1``.
        max_seqlen: the longest of the packed rows; without it the transform is as long as the packed input.

    Returns:
        ``(B, L, C)`` in the dtype and memory order of ``v``.

    Raises:
        ValueError: shapes or dtypes that do not fit.
    """
    if h.dim() != 2:
        raise ValueError(f"h must be (taps, channels), got {tuple(h.shape)}")
    longest = v.size(1) if max_seqlen is None else min(max_seqlen, v.size(1))
    if cu_seqlens is not None:
        ops.check_longest(cu_seqlens, longest)
    h = _cut(h.to(ops.compute_dtype(v)), longest, causal)
    if ops.is_direct(h.size(0), longest, v.device):
        return ops.direct_conv(v, h, d, pre, post, cu_seqlens, causal, longest)
    spectrum = ops.filter_spectrum(h[None], ops.transform_length(longest), causal)
    return ops.gated_conv(v, spectrum[0], d, pre, post, cu_seqlens)


def _cut(h: Tensor, length: int, causal: bool) -> Tensor:
    """The lags of ``h`` (taps first) that matter for rows of ``length`` positions; cut, so that none wraps around."""
    if causal:
        return h[:length]
    if h.size(0) % 2 == 0:
        raise ValueError(f"a two-sided filter has an odd number of taps, lags -(K-1) … K-1; got {h.size(0)}")
    extra = (h.size(0) + 1) // 2 - length
    return h[extra : h.size(0) - extra] if extra > 0 else h


def toeplitz(h: Tensor, length: int, *, causal: bool = True) -> Tensor:
    """The matrix of a long convolution: ``T[c, t, s] = h[t - s, c]``, zero where the filter has no such lag.

    Args:
        h: ``(…, K, C)`` taps of lags ``0 … K-1``, or ``(…, 2K-1, C)`` of lags ``-(K-1) … K-1`` with ``causal=False``.
        length: L.

    Returns:
        ``(…, C, L, L)``. It has ``L ** 2`` entries a channel: for looking and for tests.
    """
    taps = h.size(-2)
    if not causal and taps % 2 == 0:
        raise ValueError(f"a two-sided filter has an odd number of taps, lags -(K-1) … K-1; got {taps}")
    first = 0 if causal else -((taps - 1) // 2)
    at = torch.arange(length, device=h.device)
    index = at[:, None] - at - first  # (L, L): which tap stands at (t, s)
    inside = (index >= 0) & (index < taps)
    rows = h.transpose(-1, -2)[..., index.clamp(0, max(taps - 1, 0))]
    return torch.where(inside, rows, torch.zeros((), dtype=h.dtype, device=h.device))


def hyena_matrix(
    gates: Tensor, h: Tensor, d: Tensor | None = None, *, causal: bool = True, num_heads: int = 1
) -> Tensor:
    """The data-controlled matrix of the recurrence, ``H = D_0 T_F D_1 ⋯ T_1 (D_{N-1})`` (arXiv 2302.10866, sec. 3.2).

    ``y = torch.einsum("bcts,bsc->btc", hyena_matrix(gates, h, d), v)`` is what the fast path computes.

    ``D_n`` is the diagonal matrix of gate ``x^n``, ``T_i`` the Toeplitz matrix of filter ``i`` with ``d_i`` added on
    the diagonal. With ``F = N - 1`` filters the value meets gate ``x^{N-1}`` first, with ``F = N`` filter 1 (the
    paper's recurrence). With ``num_heads = M > 1`` gates take turns: one forms the outer product with the value inside
    its head, the next contracts it again (arXiv 2310.18780, section 4); if the last has nothing to contract, it
    multiplies.

    Args:
        gates: ``(B, N, L, C)``, gates ``x^0 … x^{N-1}``.
        h: ``(F, K, G)``, two-sided ``(F, 2K-1, G)``, in order of use; ``C`` is a multiple of ``G``; ``G = M`` with
            heads.
        d: ``(F, G)`` or ``(F, C)``.
        num_heads: M.

    Returns:
        ``(B, C, L, L)``. It has ``L ** 2`` entries a channel: for looking and for tests.
    """
    _, order, length, channels = gates.shape
    filters = h.size(0)
    if filters not in (order - 1, order):
        raise ValueError(f"{order} gates take {order - 1} filters, or {order} with a value filter; got {filters}")
    heads = channels if num_heads == 1 else num_heads
    if channels % heads != 0 or heads % h.size(2) != 0:
        raise ValueError(f"{channels} channels, {num_heads} heads and {h.size(2)} filter channels do not divide")
    matrices = toeplitz(h, length, causal=causal).repeat_interleave(heads // h.size(2), dim=1)  # (F, M, L, L)
    if d is not None:
        diagonal = d.repeat_interleave(heads // d.size(1), dim=1)
        matrices = matrices + diagonal[..., None, None] * torch.eye(length, dtype=h.dtype, device=h.device)
    x = gates.unflatten(-1, (heads, -1))  # (B, N, L, M, C/M)

    b, m, c = 0, 1, 2  # index labels: batch, head, channel in head; then positions and contracted channels
    fresh = iter(range(3, 10_000))
    value = now = next(fresh)
    inner: int | None = None
    terms: list[Any] = []
    for i in range(filters):
        step = i if filters < order else i - 1
        if step >= 0:
            gate = x[:, order - 1 - step]
            if num_heads == 1:
                terms += [gate[..., 0], [b, now, m]]
            elif inner is None:
                inner = next(fresh)
                terms += [gate, [b, now, m, inner]]
            else:
                terms += [gate, [b, now, m, inner]]
                inner = None
        then = next(fresh)
        terms += [matrices[i], [m, then, now]]
        now = then
    if num_heads == 1:
        out, last = [b, m, now, value], (x[:, 0, ..., 0], [b, now, m])
    elif inner is not None:
        out, last = [b, m, now, value], (x[:, 0], [b, now, m, inner])
    else:
        out, last = [b, m, c, now, value], (x[:, 0], [b, now, m, c])
    if now == value:  # order 1 without a filter: H is diagonal
        eye = torch.eye(length, dtype=gates.dtype, device=gates.device)
        then = next(fresh)
        terms += [eye, [now, then]]
        out[-1] = then
    matrix = opt_einsum.contract(*terms, *last, out)
    if matrix.dim() == 5:
        return matrix.flatten(1, 2)
    return matrix[:, :, None].expand(-1, -1, channels // heads, -1, -1).flatten(1, 2)
