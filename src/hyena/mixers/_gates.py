"""The Hyena recurrence between its projections: gates and long convolutions in turn, with heads or without.

Dimensions: B batch, L length (of a grid, all its positions), C channels, N order, M heads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn


class Gated(nn.Module):
    """What operators of the recurrence have in common, along a sequence and over a grid."""

    in_proj: nn.Linear
    short: Any
    conv: Any
    out_proj: nn.Linear
    dropout: nn.Dropout
    order: int
    num_heads: int
    value_filter: bool
    width: int
    _has_heads: bool

    def reset_parameters(self) -> None:
        """Initialises every parameter again."""
        for part in (self.in_proj, self.short, self.conv, self.out_proj):
            part.reset_parameters()

    def clear_cache(self) -> None:
        """Forgets kept spectra and tables; see :meth:`hyena.conv.LongConv.clear_cache`."""
        self.conv.clear_cache()

    def _gate_before(self, i: int) -> int | None:
        """Which gate multiplies the value before long convolution ``i``."""
        return gate_before(i, self.order, self.value_filter)

    def _conv_channels(self) -> list[int]:
        """Channels C of each long convolution: I, or ``I * I / M`` where it runs over an outer product."""
        channels, outer = [], False
        for i in range(self.conv.num_filters):
            outer = self._has_heads and self._gate_before(i) is not None and not outer
            channels.append(self.width * (self.width // self.num_heads) if outer else self.width)
        return channels

    def _recurrence(self, x: Sequence[Tensor], v: Tensor, convolve: Callable[[int, Tensor], Tensor]) -> Tensor:
        """Gates and convolutions in turn; ``convolve`` is long convolution ``i`` of ``(B, L, C)``."""
        return recurrence(
            x,
            v,
            self.conv.num_filters,
            convolve,
            value_filter=self.value_filter,
            num_heads=self.num_heads if self._has_heads else None,
            dropout=self.dropout,
        )

    def _gated_in_turn(self, x: Sequence[Tensor], v: Tensor, convolve: Callable[..., Tensor]) -> Tensor:
        """The recurrence by convolutions ``convolve(i, v, pre, post)`` that take the gates on either side."""
        last = self.conv.num_filters - 1
        if last < 0:
            return x[0] * v
        for i in range(last + 1):
            gate = self._gate_before(i)
            v = convolve(i, v, None if gate is None else x[gate], x[0] if i == last else None)
        return v


def gate_before(i: int, order: int, value_filter: bool) -> int | None:
    """Which gate multiplies the value before long convolution ``i``."""
    if value_filter:
        return None if i == 0 else order - i
    return order - 1 - i


def recurrence(
    x: Sequence[Tensor],
    v: Tensor,
    filters: int,
    convolve: Callable[[int, Tensor], Tensor],
    *,
    value_filter: bool = False,
    num_heads: int | None = None,
    dropout: Callable[[Tensor], Tensor] = lambda v: v,
) -> Tensor:
    """Gates ``x`` and value ``v``, each ``(B, L, C)``, to the mixed values.

    Args:
        x: gates ``x^0 … x^{N-1}``.
        v: the value.
        filters: how many long convolutions there are.
        convolve: long convolution ``i`` of ``(B, L, C)``; with heads also of ``(B, L, C * C / M)``.
        value_filter: whether the first convolution comes before the first gate.
        num_heads: M; None without heads.
        dropout: of each gate-value product that is convolved.
    """
    outer = False  # whether v is (B, L, M, C/M, C/M), an outer product inside each head
    for i in range(filters):
        gate = gate_before(i, len(x), value_filter)
        if gate is not None:
            v, outer = _gate(x[gate], v, outer, num_heads)
            v = dropout(v)
        v = convolve(i, v.flatten(2)).reshape(v.shape) if outer else convolve(i, v)
    return _gate(x[0], v, outer, num_heads)[0] if outer else x[0] * v


def _gate(x: Tensor, v: Tensor, outer: bool, num_heads: int | None) -> tuple[Tensor, bool]:
    """Multiplies by a gate; with heads, forms the outer product inside each head or contracts it."""
    if num_heads is None:
        return x * v, False
    x = x.unflatten(2, (num_heads, -1))  # (B, L, M, C/M)
    if outer:
        return torch.einsum("blma,blmac->blmc", x, v).flatten(2), False
    v = v.unflatten(2, (num_heads, -1))
    return x[..., :, None] * v[..., None, :], True
