"""What counting alone predicts: n-grams with interpolated Kneser-Ney smoothing, for losses to be held against.

Dimensions: n order (the token and the n - 1 before it), V vocabulary, T tokens of the text that is scored.
"""

from __future__ import annotations

import torch
from torch import Tensor

LARGEST = 2**63  # n-grams are numbered in int64


def fits(vocabulary: int, order: int) -> bool:
    """Whether n-grams of this order can be numbered."""
    return vocabulary**order < LARGEST


def log_probabilities(train: Tensor, test: Tensor, vocabulary: int, order: int) -> Tensor:
    """Log-probability of each token of ``test`` but the first, given those before it.

    Each order takes a discount off its counts and gives what that leaves to the order below, down to all tokens alike.
    Orders below the highest count in how many contexts an n-gram came, not how often (Kneser and Ney 1995; Chen and
    Goodman 1999, section 2.7), so that a token that follows one word alone is not thought likely elsewhere.

    Args:
        train: token ids to count, ``(K,)`` int64.
        test: ``(T,)``.
        vocabulary: V.
        order: n of the longest n-grams, from 1.

    Returns:
        ``(T - 1,)`` float64, in nats.

    Raises:
        ValueError: an order that is below 1, or too high for the numbers of int64.
    """
    if order < 1 or not fits(vocabulary, order):
        raise ValueError(f"the order must be at least 1, and {vocabulary}^order below 2^63; got {order}")
    p = torch.full((test.numel() - 1,), 1 / vocabulary, dtype=torch.float64)
    for n in range(1, order + 1):
        keys, counts = numbered(train, n, vocabulary).unique(return_counts=True)
        if n < order:  # contexts, not times
            keys, counts = (numbered(train, n + 1, vocabulary).unique() % vocabulary**n).unique(return_counts=True)
        first = max(0, n - 2)  # of p, whose entry t is token t + 1, with n - 1 tokens before it
        p[first:] = _interpolated(
            keys, counts, numbered(test[1 if n == 1 else 0 :], n, vocabulary), vocabulary, p[first:]
        )
    return p.log()


def _interpolated(keys: Tensor, counts: Tensor, wanted: Tensor, vocabulary: int, below: Tensor) -> Tensor:
    """Probabilities of the n-grams ``wanted``, from distinct n-grams, their counts and the order below."""
    if not keys.numel():  # the text that was counted is too short
        return below
    once, twice = ((counts == times).sum().item() for times in (1, 2))
    discount = once / (once + 2 * twice) if once and twice else 0.5
    contexts, at = (keys // vocabulary).unique(return_inverse=True)
    total = torch.zeros(contexts.numel(), dtype=torch.float64).index_add_(0, at, counts.double())
    kinds = torch.bincount(at, minlength=contexts.numel()).double()
    count = _looked_up(keys, counts.double(), wanted)
    total, kinds = (_looked_up(contexts, each, wanted // vocabulary) for each in (total, kinds))
    # A context that never came leaves it all to the order below.
    seen = ((count - discount).clamp_min(0) + discount * kinds * below) / total.clamp_min(1)
    return torch.where(total > 0, seen, below)


def numbered(tokens: Tensor, n: int, vocabulary: int) -> Tensor:
    """Each n-gram as one number, the last token as the lowest digit: ``(T - n + 1,)``."""
    count = max(0, tokens.numel() - n + 1)
    found = torch.zeros(count, dtype=torch.int64)
    for i in range(n):
        found = found * vocabulary + tokens[i : i + count]
    return found


def _looked_up(keys: Tensor, values: Tensor, wanted: Tensor) -> Tensor:
    """The values at sorted keys, 0 for those that are not there."""
    at = torch.searchsorted(keys, wanted).clamp_max(keys.numel() - 1)
    return torch.where(keys[at] == wanted, values[at], 0.0)
