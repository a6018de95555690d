"""Synthetic tasks: tokens, what a model is trained to say about them, and which of that is scored.

Dimensions: N examples, L length, D digits or coordinates, P pairs.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from experiments.shared.examples import IGNORED, last_only


@dataclasses.dataclass(frozen=True)
class Examples:
    """Examples of a task.

    Attributes:
        tokens: ``(N, L)``.
        targets: ``(N, L)``, what is trained: ``IGNORED`` where nothing is to be predicted.
        scored: the same with more of it ignored, if not all that is trained counts.
        vocabulary: tokens and targets are below it.
    """

    tokens: Tensor
    targets: Tensor
    scored: Tensor
    vocabulary: int


def majority(count: int, generator: torch.Generator, *, length: int, letters: int) -> Examples:
    """Letters at random: which came most often? None of the others came as often.

    Raises:
        ValueError: fewer than two letters, or no positions.
    """
    _check(
        "majority",
        "at least one position and two letters",
        length >= 1 and letters >= 2,
        length=length,
        letters=letters,
    )
    tokens = torch.randint(letters, (count, length), generator=generator)
    while len(tied := _tied(tokens, letters)):
        tokens[tied] = torch.randint(letters, (len(tied), length), generator=generator)
    asked = torch.full_like(tokens, IGNORED)
    asked[:, -1] = _counts(tokens, letters).argmax(1)
    return Examples(tokens, asked, asked, letters)


def counting(count: int, generator: torch.Generator, *, length: int, letters: int, most: int) -> Examples:
    """Letters at random: how often has the last one come?

    Every answer from 1 to ``most`` is as likely; answer ``k`` is the token ``letters + k - 1``.

    Raises:
        ValueError: fewer than two letters, or a row with no room for ``most`` of one.
    """
    _check(
        "counting",
        "at least two letters, and from 1 to length of the one asked for",
        letters >= 2 and 1 <= most <= length,
        length=length,
        letters=letters,
        most=most,
    )
    asked = torch.randint(letters, (count, 1), generator=generator)
    times = torch.randint(1, most + 1, (count, 1), generator=generator)
    others = (asked + torch.randint(1, letters, (count, length), generator=generator)) % letters
    places = torch.rand(count, length - 1, generator=generator).argsort(1).argsort(1)  # a shuffle of 0 … L - 2
    tokens = others
    tokens[:, :-1] = torch.where(places < times - 1, asked, others[:, :-1])
    tokens[:, -1:] = asked
    targets = torch.full_like(tokens, IGNORED)
    targets[:, -1:] = letters + times - 1
    return Examples(tokens, targets, targets, letters + most)


def addition(count: int, generator: torch.Generator, *, digits: int) -> Examples:
    """Two numbers of D digits each: the ``D + 1`` digits of their sum, one after the other.

    The highest digit is the first, zeros included; the sum's digits follow as input, so that each is predicted with the
    true ones before it. ``L = 3 D``; the first ``2 D - 1`` positions predict nothing (arXiv 2302.10866, appendix C).

    Raises:
        ValueError: no digits.
    """
    _check("addition", "at least one digit", digits >= 1, digits=digits)
    a, b = torch.randint(10, (2, count, digits), generator=generator)
    total = torch.zeros(count, digits + 1, dtype=torch.int64)
    for i in reversed(range(digits)):
        place = total[:, i + 1] + a[:, i] + b[:, i]
        total[:, i + 1], total[:, i] = place % 10, place // 10
    whole = torch.cat((a, b, total), 1)
    targets = whole[:, 1:].clone()
    targets[:, : 2 * digits - 1] = IGNORED
    return Examples(whole[:, :-1], targets, targets, 10)


def induction(count: int, generator: torch.Generator, *, length: int, letters: int) -> Examples:
    """Letters at random with a trigger among them, and the trigger again: what came after it?

    As released with arXiv 2302.10866: every next token is trained, the last one scored. The trigger is the token
    ``letters``.

    Raises:
        ValueError: fewer than two letters, or fewer than three positions.
    """
    _check(
        "induction",
        "at least three positions and two letters",
        length >= 3 and letters >= 2,
        length=length,
        letters=letters,
    )
    whole = torch.randint(letters, (count, length + 1), generator=generator)
    at = torch.randint(length - 2, (count, 1), generator=generator)
    whole.scatter_(1, at, letters)
    whole[:, -2] = letters
    whole[:, -1:] = whole.gather(1, at + 1)
    targets = whole[:, 1:].clone()
    return Examples(whole[:, :-1], targets, last_only(targets), letters + 1)


def multi_query_recall(
    count: int, generator: torch.Generator, *, length: int, pairs: int, vocabulary: int, power: float = 0.01
) -> Examples:
    """Pairs of a key and its value, then every key again somewhere among filler: what was its value?

    Multi-query associative recall of Zoology (Arora et al. 2023, arXiv 2312.04927): ``2 P`` positions of pairs; the
    keys come again at even distances after them, the distance ``2 g`` with a chance that falls as
    ``(g + 1)^(power - 1)``. Token 0 is the filler, keys are below ``vocabulary / 2``, values from there on; in an
    example no key and no value comes in two pairs.

    Raises:
        ValueError: a row with no room for as many queries as pairs, or a vocabulary with fewer keys or values than P.
    """
    half = vocabulary // 2
    fits = pairs >= 1 and length >= 4 * pairs and length % 2 == 0 and vocabulary % 2 == 0 and half - 1 >= pairs
    needs = "an even length of at least 4 a pair, and an even vocabulary of at least 2 a pair and 2"
    _check("multi-query recall", needs, fits, length=length, pairs=pairs, vocabulary=vocabulary)
    keys = 1 + _distinct(count, half - 1, pairs, generator)
    values = half + _distinct(count, half, pairs, generator)
    weights = torch.arange(1, (length - 2 * pairs) // 2 + 1, dtype=torch.float64) ** (power - 1)
    gaps = torch.multinomial(weights.expand(count, -1), pairs, generator=generator)
    asked = 2 * (pairs + gaps)
    tokens = torch.zeros(count, length, dtype=torch.int64)
    tokens[:, 0 : 2 * pairs : 2], tokens[:, 1 : 2 * pairs : 2] = keys, values
    tokens.scatter_(1, asked, keys)
    targets = torch.full_like(tokens, IGNORED).scatter_(1, asked, values)
    return Examples(tokens, targets, targets, vocabulary)


def linear_functions(count: int, generator: torch.Generator, *, dimension: int, pairs: int) -> tuple[Tensor, Tensor]:
    """Points and what a linear function gives there, then a point: what does it give?

    As arXiv 2208.01066: points and functions are normal; here the function is divided by ``sqrt(D)``, so that who
    always says zero has a squared error of 1.

    Args:
        count: N.
        generator: where the random numbers come from.
        dimension: D.
        pairs: P, the last one included, whose value is not shown.

    Returns:
        Inputs ``(N, 2 P - 1, D + 1)``, point ``(x, 0)`` and value ``(0, y)`` by turns, and the values ``(N, P)``.

    Raises:
        ValueError: no coordinates or no pairs.
    """
    _check(
        "linear functions",
        "at least one coordinate and one pair",
        dimension >= 1 and pairs >= 1,
        dimension=dimension,
        pairs=pairs,
    )
    points = torch.randn(count, pairs, dimension, generator=generator)
    weights = torch.randn(count, dimension, 1, generator=generator) / dimension**0.5
    values = (points @ weights).squeeze(-1)
    inputs = torch.zeros(count, 2 * pairs - 1, dimension + 1)
    inputs[:, 0::2, :-1] = points
    inputs[:, 1::2, -1] = values[:, :-1]
    return inputs, values


def _check(what: str, needs: str, fits: bool, **given: int) -> None:
    if not fits:
        raise ValueError(f"{what} needs {needs}; got {', '.join(f'{k}={v}' for k, v in given.items())}")


def _counts(tokens: Tensor, letters: int) -> Tensor:
    """How often each letter comes, ``(N, letters)``."""
    return torch.zeros(tokens.size(0), letters, dtype=torch.int64).scatter_add_(1, tokens, torch.ones_like(tokens))


def _tied(tokens: Tensor, letters: int) -> Tensor:
    """The rows in which two letters come most often."""
    first, second = _counts(tokens, letters).topk(2).values.unbind(1)
    return (first == second).nonzero().squeeze(1)


def _distinct(count: int, kinds: int, many: int, generator: torch.Generator) -> Tensor:
    """``many`` different numbers below ``kinds`` in each row, in random order; some rows at a time, for memory."""
    rows = max(1, 2**22 // kinds)
    parts = [min(rows, count - i) for i in range(0, count, rows)]
    return torch.cat([torch.rand(n, kinds, generator=generator).topk(many).indices for n in parts])


def least_squares(inputs: Tensor, values: Tensor) -> Tensor:
    """What least squares is off by at each point, ``(N, P)``: the smallest weights that fit the pairs before it.

    Args:
        inputs, values: of :func:`linear_functions`.
    """
    points, values = inputs[:, 0::2, :-1].double(), values.double()
    off = [values[:, 0]]
    for i in range(1, values.size(1)):
        weights = torch.linalg.pinv(points[:, :i]) @ values[:, :i, None]
        off.append(values[:, i] - (points[:, i, None] @ weights).flatten())
    return torch.stack(off, 1)
