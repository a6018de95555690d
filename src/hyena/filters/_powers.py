"""Taps ``c A^t b`` of state spaces with a dense matrix, from powers of it that double.

Matrices are held as ``E = A - 1``, and ``A^2 - 1`` is ``2 E + E^2``: slow states keep their digits, and what has faded
is -1, not a small remainder.

Dimensions: S systems, N states, K taps.
"""

from __future__ import annotations

import torch
from torch import Tensor


def rounds_products() -> bool:
    """Whether torch may round float32 to TF32 or bfloat16 in products: the error of a square is squared with it."""
    return torch.get_float32_matmul_precision() != "highest"


# What torch.compiler.assume_constant_result does; that imports the whole compiler, a second of every ``import hyena``.
rounds_products._dynamo_marked_constant = True  # type: ignore[attr-defined]


def squares(e: Tensor, exponent: int) -> list[Tensor]:
    """``A^(2^i) - 1`` for every bit of ``exponent``, from ``A - 1`` ``(S, N, N)``."""
    found = [e]
    for _ in range(exponent.bit_length() - 1):
        e = torch.baddbmm(e, e, e, beta=2)
        found.append(e)
    return found


def power(squares: list[Tensor], exponent: int) -> Tensor:
    """``A^exponent - 1``, ``(S, N, N)``."""
    found = None
    for bit, e in enumerate(squares):
        if exponent >> bit & 1:
            found = e if found is None else torch.baddbmm(found + e, found, e)
    assert found is not None
    return found


def response(squares: list[Tensor], b: Tensor, c: Tensor, count: int) -> Tensor:
    """``c A^t b`` for ``t = 0 … count-1``, ``(S, N)`` each -> ``(S, count)``.

    A product of ``c A^(W i)`` and ``A^j b`` with ``t = W i + j`` and ``W`` about ``sqrt(count)``: besides matrices and
    taps it needs memory for ``2 N sqrt(count)`` numbers a system.
    """
    bits = (count - 1).bit_length() // 2
    states, rows = b[..., None], c[:, None]
    for e in squares[:bits]:
        states = torch.cat([states, torch.baddbmm(states, e, states)], dim=2)
    needed = -(-count // states.size(2))
    for e in squares[bits:]:
        if rows.size(1) < needed:
            rows = torch.cat([rows, torch.baddbmm(rows, rows, e)], dim=1)
    return (rows[:, :needed] @ states).flatten(1)[:, :count]
