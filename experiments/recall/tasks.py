"""Associative recall: tokens and targets.

Dimensions: N examples, L length.
"""

from __future__ import annotations

import torch
from torch import Tensor


def associative_recall(count: int, length: int, vocabulary: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Pairs of a key and its value, then a separator and a key that came: what was its value?

    As released with arXiv 2302.10866: two of the tokens are special, half of the rest are keys and half values; in an
    example every key has one value. Every next token is a target; what counts is the last one.

    Args:
        count: N.
        length: L, even: ``(L - 2) / 2`` pairs, the separator and the key that is asked for.
        vocabulary: tokens in all, the two special ones among them; even, at least 6.
        generator: where the random numbers come from.

    Returns:
        Tokens and targets, ``(N, L)`` int64 each.
    """
    if length < 4 or length % 2 or vocabulary < 6 or vocabulary % 2:
        raise ValueError(
            f"recall needs an even length of at least 4 and an even vocabulary of at least 6, got {length} and "
            f"{vocabulary}"
        )
    kinds = (vocabulary - 2) // 2  # of keys, and of values
    pairs = (length - 2) // 2
    value_of = torch.randint(kinds, (count, kinds), generator=generator) + kinds
    keys = torch.randint(kinds, (count, pairs), generator=generator)
    asked = keys.gather(1, torch.randint(pairs, (count, 1), generator=generator))
    tokens = torch.full((count, length + 1), vocabulary - 1)  # what is not written below: the separator
    tokens[:, 0 : 2 * pairs : 2] = keys
    tokens[:, 1 : 2 * pairs : 2] = value_of.gather(1, keys)
    tokens[:, -2:-1] = asked
    tokens[:, -1:] = value_of.gather(1, asked)
    return tokens[:, :-1], tokens[:, 1:]


def chance(vocabulary: int) -> float:
    """The share of right answers of who guesses among the values."""
    return 2 / (vocabulary - 2)
