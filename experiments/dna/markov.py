"""Markov models of any order with interpolated counts: what a few bases of context are worth.

The probability of a base after the ``k`` before it is ``(n(context, base) + a_k p_{k-1}) / (n(context) + a_k)``, with
``p_{-1} = 1/4``: where a context is rare, that of the shorter context takes over (MacKay and Peto 1995). ``a_k`` is
chosen on bases that the counts have not seen.
"""

from __future__ import annotations

import torch
from torch import Tensor

WEIGHTS = tuple(2.0**i for i in range(-2, 13))  # of what a_k is chosen from


class Counts:
    """How often each context of ``order`` bases, and each base after it, comes in either strand of a sequence."""

    def __init__(self, bases: Tensor, order: int) -> None:
        strands = (bases, 3 - bases.flip(0))
        self.order = order
        self.with_base = _counted(torch.cat([_codes(strand, order + 1) for strand in strands]))
        self.context = _counted(torch.cat([_codes(strand[:-1], order) for strand in strands]))

    def probabilities(self, bases: Tensor, first: int, shorter: Tensor, weight: float) -> Tensor:
        """Of each base from ``first`` on, given those before it; ``shorter`` are those of the order below."""
        k = self.order
        words = _codes(bases[first - k :], k + 1)
        both, alone = _look_up(self.with_base, words), _look_up(self.context, words // 4)
        return (both + weight * shorter) / (alone + weight)


def _codes(bases: Tensor, length: int) -> Tensor:
    """Each run of ``length`` bases as a number in base 4, its last base the lowest digit; ``(n - length + 1,)``."""
    codes = torch.zeros(bases.numel() - length + 1, dtype=torch.long)
    for i in range(length):
        codes = 4 * codes + bases[i : i + codes.numel()]
    return codes


def _counted(codes: Tensor) -> tuple[Tensor, Tensor]:
    values, counts = codes.unique(return_counts=True)
    return values, counts.double()


def _look_up(counted: tuple[Tensor, Tensor], codes: Tensor) -> Tensor:
    values, counts = counted
    at = torch.searchsorted(values, codes).clamp(max=values.numel() - 1)
    return torch.where(values[at] == codes, counts[at], 0.0)


def bits(probabilities: Tensor) -> float:
    """Mean bits of a base."""
    return -probabilities.log2().mean().item()


def held_out_bits(bases: Tensor, first: int, most: int) -> list[dict[str, float]]:
    """Bits of a held-out base under orders 0 to ``most``, with the weight of each.

    Args:
        bases: the chromosome.
        first: of the held-out bases, from which nothing is fitted.
        most: the highest order.
    """
    last = first * 9 // 10  # weights are chosen on the last tenth of the training part
    found = []
    before = torch.full((first - last,), 0.25, dtype=torch.double)
    shorter = torch.full((bases.numel() - first,), 0.25, dtype=torch.double)
    for order in range(most + 1):
        part = Counts(bases[:last], order)
        tried = {weight: part.probabilities(bases[:first], last, before, weight) for weight in WEIGHTS}
        weight = min(tried, key=lambda w, tried=tried: bits(tried[w]))
        before = tried[weight]
        shorter = Counts(bases[:first], order).probabilities(bases, first, shorter, weight)
        found.append({"order": order, "weight": weight, "bits": bits(shorter)})
    return found
