"""Packed rows: many sequences in one row, ``cu_seqlens`` saying where each begins (flash-attention's convention).

The fallback takes packed rows apart into a few padded batches, one for each power of two of the length, so that the
padding at most doubles the work whatever the mixture of lengths.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor


def check_bounds(cu_seqlens: Tensor | None, total: int, longest: int) -> None:
    """:func:`row_bounds` where it waits for no device and breaks no trace."""
    if cu_seqlens is not None and cu_seqlens.device.type == "cpu" and not torch.compiler.is_compiling():
        row_bounds(cu_seqlens, total, longest)


def check_longest(cu_seqlens: Tensor, longest: int) -> None:
    """Whether packed rows have at most ``longest`` positions, where that waits for no device and breaks no trace.

    Raises:
        ValueError: a longer row, which would miss its filter's last taps.
    """
    if cu_seqlens.device.type != "cpu" or torch.compiler.is_compiling() or cu_seqlens.numel() < 2:
        return
    found = int(cu_seqlens.diff().max())
    if found > longest:
        raise ValueError(
            f"cu_seqlens holds a row of {found} positions, more than the {longest} of max_seqlen; pass "
            f"max_seqlen={found} or more"
        )


def longest_row(v: Tensor, cu_seqlens: Tensor | None, max_seqlen: int | None) -> int:
    """The longest row of ``v`` (B, L, C), packed or not: ``max_seqlen``, where the caller knows it, or L.

    Raises:
        ValueError: ``max_seqlen`` without packed rows, or less than one of them.
        TypeError: ``max_seqlen`` is no integer.
    """
    if max_seqlen is None:
        return v.size(1)
    if cu_seqlens is None:
        raise ValueError(
            f"max_seqlen={max_seqlen} is the longest of packed rows: pass their cu_seqlens too, or leave it out"
        )
    if isinstance(max_seqlen, bool) or not isinstance(max_seqlen, (int, torch.SymInt)):
        raise TypeError(f"max_seqlen must be an int, got {max_seqlen!r} of type {type(max_seqlen).__name__}")
    if max_seqlen < 1:
        raise ValueError(f"max_seqlen must be at least 1, got {max_seqlen}")
    check_longest(cu_seqlens, max_seqlen)
    return min(max_seqlen, v.size(1))


def row_bounds(cu_seqlens: Tensor, total: int, longest: int) -> list[tuple[int, int]]:
    """``[(start, end), …]`` of the non-empty rows, after checking the offsets against ``total`` positions.

    Raises:
        ValueError: offsets that do not run from 0 to ``total`` without decreasing, or a row longer than ``longest``.
    """
    offsets = cu_seqlens.tolist()
    if offsets[0] != 0 or offsets[-1] != total or any(a > b for a, b in pairwise(offsets)):
        raise ValueError(f"cu_seqlens must rise from 0 to the packed length {total}, got {offsets[:8]}…{offsets[-1]}")
    bounds = [(a, b) for a, b in pairwise(offsets) if b > a]
    worst = max((b - a for a, b in bounds), default=0)
    if worst > longest:
        raise ValueError(
            f"cu_seqlens holds a row of {worst} positions, more than the {longest} that its spectrum was built for; "
            f"pass max_seqlen={worst} or more"
        )
    return bounds


def map_rows(
    fn: Callable[..., Tensor | tuple[Tensor, ...]],
    packed: tuple[Tensor | None, ...],
    bounds: list[tuple[int, int]],
) -> list[Tensor]:
    """Applies ``fn`` to padded batches of the rows and puts the results back in packed order.

    Args:
        fn: takes ``keep`` (bool ``(S, Lmax)``, True where a row has a position) and each of ``packed`` as
            ``(S, Lmax, …)``, zero outside the rows. Returns tensors: the first is ``(S, Lmax, C)`` and is packed again,
            the others (gradients of parameters) are summed over the batches.
        packed: tensors of shape ``(1, T, …)``, or None.
        bounds: from :func:`row_bounds`; not empty.
    """
    first = next(t for t in packed if t is not None)
    order, pieces, sums = [], [], []
    for group in _by_power_of_two(bounds):
        longest = max(b - a for a, b in group)
        start = torch.tensor([a for a, _ in group], device=first.device)
        size = torch.tensor([b - a for a, b in group], device=first.device)
        step = torch.arange(longest, device=first.device)
        keep = step < size[:, None]
        index = torch.where(keep, start[:, None] + step, 0)
        rows = [None if t is None else _gather(t, index, keep) for t in packed]
        out = fn(keep, *rows)
        out = out if isinstance(out, tuple) else (out,)
        order.append(index[keep])
        pieces.append(out[0][keep])
        sums.append(out[1:])
    inverse = torch.argsort(torch.cat(order))
    result = torch.cat(pieces)[inverse][None]
    return [result, *(_sum(parts) for parts in zip(*sums))]


def _gather(t: Tensor, index: Tensor, keep: Tensor) -> Tensor:
    rows = t[0][index]
    return torch.where(
        keep.view(*keep.shape, *([1] * (rows.dim() - 2))), rows, torch.zeros((), dtype=t.dtype, device=t.device)
    )


def _sum(parts: tuple[Tensor, ...]) -> Tensor:
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total


def _by_power_of_two(bounds: list[tuple[int, int]]) -> list[list[tuple[int, int]]]:
    groups: dict[int, list[tuple[int, int]]] = {}
    for a, b in bounds:
        groups.setdefault((b - a - 1).bit_length(), []).append((a, b))
    return list(groups.values())
