"""Attention of the last positions of a row to all of it, in blocks of keys: memory does not grow with the row.

Dimensions: B batch, M heads, H heads of keys, T positions so far, n new ones at their end, d channels of a head.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from hyena import ops

# Scores up to this many are computed at once, under a mask; that many fit a processor's cache.
_AT_ONCE = 1 << 20

# Queries and scores of a block otherwise: 16 MB of them, read from memory a few times.
_QUERIES = 256
_SCORES = 1 << 22
_LEAST_KEYS, _MOST_KEYS = 64, 4096


def attend(q: Tensor, k: Tensor, v: Tensor, keep: Tensor | None) -> Tensor:
    """``softmax(q k^T / sqrt(d)) v`` of the last ``n`` positions, each of which sees itself and all before it.

    Softmax over blocks of keys with a running maximum and sum (Milakov and Gimelshein, arXiv 1805.02867), so that the
    scores in memory do not grow with ``n`` or ``T``.

    Args:
        q: ``(B, M, n, d)``.
        k, v: ``(B, H, T, d)``, any strides; H divides M.
        keep: ``(B, T)`` bool, which keys are not padding; None for all.

    Returns:
        ``(B, M, n, d)`` in the dtype of ``q``. Queries that see no key come out as zero, or as their own value.
    """
    batch, heads, n, d = q.shape
    total = k.size(2)
    if n == 1 and keep is None:  # a query sees every key, and so do those of the heads that share them
        rows = q.reshape(batch, k.size(1), -1, d)
        return F.scaled_dot_product_attention(rows, k.to(q.dtype), v.to(q.dtype)).reshape(q.shape)
    if n == total and keep is None:
        k, v = (shared(t.to(q.dtype), heads) for t in (k, v))
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)
    if batch * heads * n * total <= _AT_ONCE or torch.compiler.is_compiling():
        at = torch.arange(total, device=q.device)
        own = at[total - n :, None]
        allowed = at <= own
        if keep is not None:  # a padded query may see itself: a row of the softmax with nothing in it would be NaN
            allowed = (allowed & keep[:, None, None]) | (at == own)
        k, v = (shared(t.to(q.dtype), heads) for t in (k, v))
        return F.scaled_dot_product_attention(q, k, v, attn_mask=allowed)
    y = torch.empty_like(q)
    for first in range(0, n, _QUERIES):
        stop = min(first + _QUERIES, n)
        seen = total - n + stop
        part = None if keep is None else keep[:, :seen]
        y[:, :, first:stop] = _block(q[:, :, first:stop], k[:, :, :seen], v[:, :, :seen], part)
    return y


def shared(x: Tensor, heads: int) -> Tensor:
    """Keys or values ``(B, H, T, d)`` for ``heads`` queries' heads, of which ``heads / H`` share each."""
    return x if x.size(1) == heads else x.repeat_interleave(heads // x.size(1), dim=1)


def _block(q: Tensor, k: Tensor, v: Tensor, keep: Tensor | None) -> Tensor:
    """:func:`attend` of a few queries, block by block of keys."""
    batch, heads, n, d = q.shape
    groups, total = k.size(1), k.size(2)
    dtype = ops.compute_dtype(q)
    q = (q.to(dtype) * d**-0.5).reshape(batch, groups, -1, d)  # (B, H, M/H * n, d)
    width = min(max(_SCORES // (batch * heads * n), _LEAST_KEYS), _MOST_KEYS)
    own = torch.arange(total - n, total, device=q.device)[:, None]
    most = q.new_full((*q.shape[:3], 1), torch.finfo(dtype).min)
    size, y = torch.zeros_like(most), torch.zeros_like(q)
    for first in range(0, total, width):
        stop = min(first + width, total)
        scores = q @ k[:, :, first:stop].to(dtype).transpose(2, 3)
        hidden = None if keep is None else ~keep[:, None, None, first:stop]  # (B, 1, 1, width)
        if stop > total - n + 1:  # some of these keys come after some of the queries
            after = torch.arange(first, stop, device=q.device) > own
            hidden = after if hidden is None else hidden | after
        if hidden is not None:
            scores.view(batch, groups, -1, n, stop - first).masked_fill_(
                hidden if hidden.dim() == 2 else hidden[:, :, None], -torch.inf
            )
        peak = torch.maximum(most, scores.amax(-1, keepdim=True))
        scores.sub_(peak).exp_()
        fade = torch.exp(most - peak)
        size.mul_(fade).add_(scores.sum(-1, keepdim=True))
        y.mul_(fade).add_(scores @ v[:, :, first:stop].to(dtype))
        most = peak
    return (y / size.clamp_min(torch.finfo(dtype).tiny)).reshape(batch, heads, n, d)
