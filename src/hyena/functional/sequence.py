"""Short, long and gated convolutions along a sequence, and their matrices.

Dimensions: B batch, L length, C channels, K taps, N order, F long filters, M heads.
"""

from __future__ import annotations

from typing import Any

import opt_einsum
import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F

from hyena import ops
from hyena.functional.layout import Layout


def short_conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    mask: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    *,
    activation: str | None = None,
    padding: str = "causal",
    initial_state: Tensor | None = None,
    return_final_state: bool = False,
) -> Any:
    """Depthwise convolution of a few taps, causal or centred.

    ``F.conv1d(F.pad(x.mT, (taps - 1, 0)), weight[:, None], bias, groups=C).mT``

    Args:
        x: ``(B, L, C)``, any strides.
        weight: ``(C, taps)``; the last tap multiplies the current position, as in ``nn.Conv1d``.
        bias: ``(C,)``.
        mask: ``(B, L)`` bool, True = keep; applied to ``x`` and again to the result, so that the bias does not leak.
        cu_seqlens: ``(rows + 1,)`` int32 or int64 offsets of rows packed into one; then ``B = 1``.
        activation: "silu" (or "swish", the same), applied before the result is rounded to the dtype of ``x``.
        padding: "causal", or "same": the taps are centred on the current position, as ``F.conv1d(…, padding="same")``
            has them (of an even number, the one before the middle is at the current position).
        initial_state: ``(B, taps - 1, C)`` the inputs before the first position, the latest one last; ``(rows, taps -
            1, C)`` with ``cu_seqlens``. Zeros if missing.
        return_final_state: whether to return the inputs that the next positions will need, an ``initial_state`` for
            them, too. Positions that ``mask`` hides are zeros there.

    Returns:
        ``(B, L, C)`` in the dtype and memory order of ``x``; with ``return_final_state`` a pair of it and the state.

    Raises:
        ValueError: shapes, dtypes or options that do not fit.
    """
    if activation not in (None, "silu", "swish"):
        raise ValueError(f"activation must be 'silu', 'swish' or None, got {activation!r}")
    if padding not in ("causal", "same"):
        raise ValueError(f"padding must be 'causal' or 'same', got {padding!r}")
    if padding == "same" and (initial_state is not None or return_final_state):
        raise ValueError("padding='same' sees later inputs, so that it has no state to begin with or to return")
    ops.check_short_conv(x, weight, bias, mask, cu_seqlens)
    state = _checked_state(x, weight, cu_seqlens, initial_state)
    z = x if activation is None else x.to(ops.compute_dtype(x))
    if padding == "same":
        y = _same_conv(z, weight, bias, mask, cu_seqlens)
    elif state is None:
        y = ops.short_conv(z, weight, bias, mask, cu_seqlens)
    else:
        y = _conv_after(state.to(z.dtype), z, weight, bias, mask, cu_seqlens)
    if activation is not None:
        y = F.silu(y)
    y = ops.to_order_of(y, x)
    if not return_final_state:
        return y
    kept = x if mask is None else torch.where(mask[..., None], x, 0)
    return y, _final_state(kept, weight.size(1) - 1, state, cu_seqlens)


def _checked_state(x: Tensor, weight: Tensor, cu_seqlens: Tensor | None, state: Tensor | None) -> Tensor | None:
    if state is None:
        return None
    rows = x.size(0) if cu_seqlens is None else cu_seqlens.size(0) - 1
    shape = (rows, weight.size(1) - 1, x.size(2))
    if state.shape != shape or state.dtype != x.dtype or state.device != x.device:
        raise ValueError(
            f"initial_state must be {x.dtype} of shape {shape} on {x.device}, (rows, taps - 1, channels); got "
            f"{state.dtype} of shape {tuple(state.shape)} on {state.device}"
        )
    return state


def _row_of_position(cu_seqlens: Tensor, length: int) -> Tensor:
    """(L,): which packed row each position is in."""
    at = torch.arange(length, device=cu_seqlens.device)
    return torch.searchsorted(cu_seqlens.long(), at, right=True) - 1


def _with_room(x: Tensor, cu_seqlens: Tensor, before: int, after: int) -> tuple[Tensor, Tensor, Tensor]:
    """``x`` with zeros before and after each packed row, its offsets, and where the positions of ``x`` now are."""
    rows = cu_seqlens.size(0) - 1
    room = before + after
    at = torch.arange(x.size(1), device=x.device) + before + room * _row_of_position(cu_seqlens, x.size(1))
    offsets = cu_seqlens.long() + room * torch.arange(rows + 1, device=x.device)
    wide = x.new_zeros(1, x.size(1) + room * rows, *x.shape[2:]).index_copy(1, at, x)
    return wide, offsets, at


def _conv_after(
    state: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, mask: Tensor | None, cu_seqlens: Tensor | None
) -> Tensor:
    """The causal convolution of ``x`` that follows the inputs in ``state``."""
    before = state.size(1)
    if cu_seqlens is None:
        keep = None if mask is None else F.pad(mask, (before, 0), value=True)
        return ops.short_conv(torch.cat([state, x], dim=1), weight, bias, keep)[:, before:]
    kept = x if mask is None else torch.where(mask[..., None], x, 0)
    wide, offsets, at = _with_room(kept, cu_seqlens, before, 0)
    places = offsets[:-1, None] + torch.arange(before, device=x.device)
    wide = wide.index_copy(1, places.flatten(), state.flatten(0, 1)[None])
    y = ops.short_conv(wide, weight, bias, None, offsets)[:, at]
    return y if mask is None else torch.where(mask[..., None], y, 0)


def _same_conv(
    x: Tensor, weight: Tensor, bias: Tensor | None, mask: Tensor | None, cu_seqlens: Tensor | None
) -> Tensor:
    """The convolution whose taps are centred: the causal one, that many positions later."""
    after = weight.size(1) // 2
    kept = x if mask is None else torch.where(mask[..., None], x, 0)
    if cu_seqlens is None:
        y = ops.short_conv(F.pad(kept, (0, 0, 0, after)), weight, bias)[:, after:]
    else:
        wide, offsets, at = _with_room(kept, cu_seqlens, 0, after)
        y = ops.short_conv(wide, weight, bias, None, offsets)[:, at + after]
    return y if mask is None else torch.where(mask[..., None], y, 0)


def _final_state(x: Tensor, count: int, state: Tensor | None, cu_seqlens: Tensor | None) -> Tensor:
    """The last ``count`` inputs of each row, those before its first position taken from ``state``."""
    if cu_seqlens is None:
        before = x.new_zeros(x.size(0), count, x.size(2)) if state is None else state
        missing = max(count - x.size(1), 0)
        return torch.cat([before[:, count - missing :], x[:, x.size(1) - (count - missing) :]], dim=1)
    start, end = cu_seqlens[:-1, None].long(), cu_seqlens[1:, None].long()
    at = end - count + torch.arange(count, device=x.device)  # (rows, count)
    found = x[0, at.clamp(min=0)] if x.size(1) > 0 else x.new_zeros(*at.shape, x.size(2))
    earlier = torch.zeros_like(found)
    if state is not None:
        index = (at - start + count).clamp(0, max(count - 1, 0))
        earlier = state.gather(1, index[..., None].expand(-1, -1, x.size(2)))
    return torch.where((at >= start)[..., None], found, earlier)


def fft_conv(x: Tensor, h: Tensor, d: Tensor | None = None, *, causal: bool = True, circular: bool = False) -> Tensor:
    """Long convolution along the sequence in ``O(L log L)``, causal or two-sided, without wrap-around at any length.

    ``torch.einsum("cts,bsc->btc", toeplitz(h, L, causal=causal), x) + d * x``

    A transform spreads a NaN or an infinity in ``x`` over its whole row, earlier positions included; under
    ``torch.autograd.detect_anomaly()`` the call raises and names the first one. Few taps are applied one by one where
    that is faster; then earlier positions stay finite. Rows much longer than their filter are convolved a section at a
    time, and earlier sections stay finite.

    Args:
        x: ``(B, L, C)``, any strides.
        h: ``(K, G)`` taps of lags ``0 … K-1``, or ``(2K-1, G)`` of lags ``-(K-1) … K-1`` with ``causal=False``. ``C``
            is a multiple of ``G``; channel ``c`` uses filter ``c // (C // G)``. Lags beyond the input do nothing.
            ``(B, K, G)``: a filter of its own for each row of the batch.
        d: ``(C,)`` weight of the input itself.
        causal: ``h`` has lags from 0 on; otherwise it is two-sided.
        circular: the row is a circle, its first position follows its last one; longer filters go round it repeatedly.

    Returns:
        ``(B, L, C)`` in the dtype and memory order of ``x``. It is computed in float32, in float64 for float64.

    Raises:
        ValueError: shapes or dtypes that do not fit.
    """
    if circular:
        return _circular_conv(x, h, d, causal)
    return gated_conv(x, h, d, causal=causal)


def _circular_conv(x: Tensor, h: Tensor, d: Tensor | None, causal: bool) -> Tensor:
    ops.check_gated_conv(x, h, d, causal=causal)
    if x.numel() == 0:
        return gated_conv(x, h, d, causal=causal)
    layout = Layout.of(x.shape[1:2], h.shape[-2:-1], (causal,), ("circular",))
    taps, one_sided = layout.taps(h.to(ops.compute_dtype(x)))
    y = gated_conv(layout.row(x), taps, d, causal=one_sided)
    return ops.to_order_of(layout.grid(y), x)


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
        v, pre, post: ``(B, L, C)``, any strides. For NaN and infinities in them see :func:`fft_conv`.
        h, d, causal: as in :func:`fft_conv`.
        cu_seqlens: ``(rows + 1,)`` int32 or int64 offsets of rows packed into one; then ``B = 1``.
        max_seqlen: the longest of the packed rows; without it the transform is as long as the packed input.

    Returns:
        ``(B, L, C)`` in the dtype and memory order of ``v``.

    Raises:
        ValueError: shapes or dtypes that do not fit.
        TypeError: ``max_seqlen`` is no integer.
    """
    ops.check_gated_conv(v, h, d, pre, post, cu_seqlens, causal)
    longest = ops.longest_row(v, cu_seqlens, max_seqlen)
    if v.numel() == 0:
        return ops.empty_result(v, v.size(2), h, d, pre, post)
    if h.dim() == 3:
        return _conv_of_own_filters(v, h, d, pre, post, causal, cu_seqlens, max_seqlen)
    h = _cut(h.to(ops.compute_dtype(v)), longest, causal)
    section = ops.section_length(h.size(0), h.size(1), longest, v.device) if causal else None
    if section is None and ops.is_direct(h.size(0), longest, v.device, v.dtype):
        return ops.direct_conv(v, h, d, pre, post, cu_seqlens, causal, longest)
    spectrum = ops.filter_spectrum(h[None], section or ops.transform_length(longest), causal)
    return ops.gated_conv(v, spectrum[0], d, pre, post, cu_seqlens, sectioned=section is not None)


def _conv_of_own_filters(
    v: Tensor,
    h: Tensor,
    d: Tensor | None,
    pre: Tensor | None,
    post: Tensor | None,
    causal: bool,
    cu_seqlens: Tensor | None,
    max_seqlen: int | None,
) -> Tensor:
    """Rows with filters of their own, ``(B, K, G)``, are channels of one row."""
    batch = v.size(0)
    if batch == 1:
        args = (d, pre, post)
        return gated_conv(v, h[0], *args, causal=causal, cu_seqlens=cu_seqlens, max_seqlen=max_seqlen)
    gates = [None if t is None else rearrange(t, "b l c -> 1 l (b c)") for t in (pre, post)]
    d = None if d is None else d.repeat(batch)
    y = gated_conv(rearrange(v, "b l c -> 1 l (b c)"), rearrange(h, "b k g -> k (b g)"), d, *gates, causal=causal)
    return ops.to_order_of(rearrange(y, "1 l (b c) -> b l c", b=batch), v)


def _cut(h: Tensor, length: int, causal: bool) -> Tensor:
    """The lags of ``h`` (taps first) that matter for rows of ``length`` positions; cut, so that none wraps around."""
    if causal:
        return h[:length]
    extra = (h.size(0) + 1) // 2 - length
    return h[extra : h.size(0) - extra] if extra > 0 else h


def toeplitz(h: Tensor, length: int, *, causal: bool = True) -> Tensor:
    """The matrix of a long convolution: ``T[c, t, s] = h[t - s, c]``, zero where the filter has no such lag.

    Args:
        h: ``(…, K, C)`` taps of lags ``0 … K-1``, or ``(…, 2K-1, C)`` of lags ``-(K-1) … K-1`` with ``causal=False``.
        length: L.
        causal: ``h`` has lags from 0 on; otherwise it is two-sided.

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
        causal: ``h`` has lags from 0 on; otherwise it is two-sided.
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
