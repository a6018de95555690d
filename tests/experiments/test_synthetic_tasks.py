"""The synthetic tasks: every target follows from the tokens, found again by a slow loop of the test's own."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from experiments.recall.tasks import associative_recall, chance
from experiments.synthetics import tasks
from hypothesis import given
from hypothesis import strategies as st

SEEDS = st.integers(0, 2**32)
IGNORED = -100


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def rows(examples: tasks.Examples) -> list[tuple[list[int], list[int], list[int]]]:
    """Tokens, targets and what is scored, as lists; every one of them is checked to be in the vocabulary."""
    tokens, targets, scored = (t.tolist() for t in (examples.tokens, examples.targets, examples.scored))
    for row in tokens + [[t for t in row if t != IGNORED] for row in targets + scored]:
        assert all(0 <= token < examples.vocabulary for token in row)
    return list(zip(tokens, targets, scored, strict=True))


def only_last(row: list[int]) -> int:
    """The last target, the only one there is."""
    assert row[:-1] == [IGNORED] * (len(row) - 1)
    return row[-1]


@given(seed=SEEDS, pairs=st.integers(1, 12), kinds=st.integers(2, 8))
def test_associative_recall(seed: int, pairs: int, kinds: int) -> None:
    length, vocabulary = 2 * pairs + 2, 2 * kinds + 2
    tokens, targets = associative_recall(20, length, vocabulary, seeded(seed))
    assert tokens.shape == targets.shape == (20, length)
    for row, wanted in zip(tokens.tolist(), targets.tolist(), strict=True):
        assert row[1:] == wanted[:-1]  # every next token is a target
        known: dict[int, int] = {}
        for key, value in zip(row[0 : 2 * pairs : 2], row[1 : 2 * pairs : 2], strict=True):
            assert key < kinds <= value < 2 * kinds
            assert known.setdefault(key, value) == value
        assert row[-2] == vocabulary - 1
        assert wanted[-1] == known[row[-1]]


def test_who_guesses_a_value_is_right_by_chance() -> None:
    _, targets = associative_recall(20_000, 16, 12, seeded(1))
    shares = [(targets[:, -1] == value).double().mean().item() for value in range(5, 10)]
    assert shares == pytest.approx([chance(12)] * 5, abs=0.01)


@given(seed=SEEDS, length=st.integers(1, 20), letters=st.integers(2, 6))
def test_majority(seed: int, length: int, letters: int) -> None:
    examples = tasks.majority(20, seeded(seed), length=length, letters=letters)
    assert torch.equal(examples.targets, examples.scored)
    for row, targets, _ in rows(examples):
        (first, most), *rest = Counter(row).most_common()
        assert only_last(targets) == first
        assert all(times < most for _, times in rest)


@given(seed=SEEDS, length=st.integers(1, 20), letters=st.integers(2, 6), data=st.data())
def test_counting(seed: int, length: int, letters: int, data: st.DataObject) -> None:
    most = data.draw(st.integers(1, length))
    examples = tasks.counting(20, seeded(seed), length=length, letters=letters, most=most)
    assert torch.equal(examples.targets, examples.scored)
    assert examples.vocabulary == letters + most
    for row, targets, _ in rows(examples):
        assert max(row) < letters
        assert only_last(targets) - letters + 1 == row.count(row[-1]) <= most


def test_counts_are_equally_likely_and_anywhere() -> None:
    examples = tasks.counting(20_000, seeded(1), length=9, letters=3, most=4)
    counts = Counter(examples.targets[:, -1].tolist())
    assert [counts[3 + k] / 20_000 for k in range(4)] == pytest.approx([0.25] * 4, abs=0.015)
    came = (examples.tokens[:, :-1] == examples.tokens[:, -1:]).double().mean(0)
    assert came.tolist() == pytest.approx([1.5 / 8] * 8, abs=0.015)


@given(seed=SEEDS, digits=st.integers(1, 17))
def test_addition(seed: int, digits: int) -> None:
    examples = tasks.addition(20, seeded(seed), digits=digits)
    assert torch.equal(examples.targets, examples.scored)
    for row, targets, _ in rows(examples):
        assert targets[: 2 * digits - 1] == [IGNORED] * (2 * digits - 1)
        answer = targets[2 * digits - 1 :]
        assert row[2 * digits :] == answer[:-1]  # the digits before the one that is asked for
        a, b, total = (int("".join(map(str, part))) for part in (row[:digits], row[digits : 2 * digits], answer))
        assert a + b == total
        assert len(answer) == digits + 1


@given(seed=SEEDS, length=st.integers(3, 20), letters=st.integers(2, 6))
def test_induction(seed: int, length: int, letters: int) -> None:
    examples = tasks.induction(20, seeded(seed), length=length, letters=letters)
    for row, targets, scored in rows(examples):
        assert row[1:] == targets[:-1]
        assert only_last(scored) == targets[-1]
        assert row.count(letters) == 2
        assert row[-1] == letters
        assert targets[-1] == row[row.index(letters) + 1] < letters


@given(seed=SEEDS, pairs=st.integers(1, 6), spare=st.integers(0, 8), data=st.data())
def test_multi_query_recall(seed: int, pairs: int, spare: int, data: st.DataObject) -> None:
    half = pairs + 1 + data.draw(st.integers(0, 5))
    length = 4 * pairs + 2 * spare
    examples = tasks.multi_query_recall(20, seeded(seed), length=length, pairs=pairs, vocabulary=2 * half)
    assert torch.equal(examples.targets, examples.scored)
    for row, targets, _ in rows(examples):
        keys, values = row[0 : 2 * pairs : 2], row[1 : 2 * pairs : 2]
        assert len(set(keys)) == len(set(values)) == pairs
        assert all(0 < key < half <= value for key, value in zip(keys, values, strict=True))
        value_of = dict(zip(keys, values, strict=True))
        asked = []
        for i, (token, target) in enumerate(zip(row, targets, strict=True)):
            if i >= 2 * pairs and token != 0:
                assert i % 2 == 0
                assert target == value_of[token]
                asked.append(token)
            else:
                assert target == IGNORED
        assert sorted(asked) == sorted(keys)


def test_queries_fall_off_as_a_power_law() -> None:
    examples = tasks.multi_query_recall(40_000, seeded(1), length=34, pairs=1, vocabulary=8)
    where = (examples.targets[:, 2::2] != IGNORED).double().mean(0)
    weights = [(gap + 1) ** (0.01 - 1) for gap in range(16)]
    assert where.tolist() == pytest.approx([w / math.fsum(weights) for w in weights], abs=0.01)


@given(seed=SEEDS, dimension=st.integers(1, 4), pairs=st.integers(1, 8))
def test_linear_functions(seed: int, dimension: int, pairs: int) -> None:
    inputs, values = tasks.linear_functions(5, seeded(seed), dimension=dimension, pairs=pairs)
    assert inputs.shape == (5, 2 * pairs - 1, dimension + 1)
    assert values.shape == (5, pairs)
    for row, wanted in zip(inputs.double().numpy(), values.double().numpy(), strict=True):
        points, shown = row[0::2], row[1::2]
        assert (points[:, -1] == 0).all()
        assert (shown[:, :-1] == 0).all()
        assert (shown[:, -1] == wanted[:-1]).all()
        # One linear function gives all the values, the last one too.
        weights = np.linalg.lstsq(points[:, :-1], wanted, rcond=None)[0]
        assert np.abs(points[:, :-1] @ weights - wanted).max() < 1e-5


def test_least_squares() -> None:
    inputs, values = tasks.linear_functions(4000, seeded(1), dimension=4, pairs=7)
    off = tasks.least_squares(inputs, values).square().mean(0)
    # Of the directions that no point has shown, the function's part is missing; all are shown by 4 points.
    assert off[:4].tolist() == pytest.approx([1.0, 0.75, 0.5, 0.25], abs=0.06)
    assert off[4:].median() < 1e-6


@pytest.mark.parametrize(
    ("make", "options", "numbers"),
    [
        (tasks.majority, {"length": 0, "letters": 3}, "length=0, letters=3"),
        (tasks.majority, {"length": 5, "letters": 1}, "length=5, letters=1"),
        (tasks.counting, {"length": 5, "letters": 3, "most": 6}, "length=5, letters=3, most=6"),
        (tasks.counting, {"length": 5, "letters": 1, "most": 2}, "letters=1"),
        (tasks.addition, {"digits": 0}, "digits=0"),
        (tasks.induction, {"length": 2, "letters": 3}, "length=2, letters=3"),
        (tasks.multi_query_recall, {"length": 14, "pairs": 4, "vocabulary": 16}, "length=14, pairs=4"),
        (tasks.multi_query_recall, {"length": 17, "pairs": 4, "vocabulary": 16}, "length=17"),
        (tasks.multi_query_recall, {"length": 16, "pairs": 4, "vocabulary": 8}, "vocabulary=8"),
        (tasks.linear_functions, {"dimension": 0, "pairs": 4}, "dimension=0, pairs=4"),
    ],
)
def test_sizes_that_make_no_task(make: Callable[..., Any], options: dict[str, int], numbers: str) -> None:
    with pytest.raises(ValueError, match=numbers):
        make(4, seeded(1), **options)


@pytest.mark.parametrize(("length", "vocabulary"), [(2, 10), (7, 10), (8, 4), (8, 9)])
def test_sizes_that_make_no_recall(length: int, vocabulary: int) -> None:
    with pytest.raises(ValueError, match=f"{length} and {vocabulary}"):
        associative_recall(4, length, vocabulary, seeded(1))


@pytest.mark.parametrize(
    "make",
    [
        lambda generator: associative_recall(9, 12, 10, generator),
        lambda generator: tasks.linear_functions(9, generator, dimension=2, pairs=3),
        lambda generator: tasks.majority(9, generator, length=8, letters=4).tokens,
        lambda generator: tasks.counting(9, generator, length=8, letters=4, most=3).tokens,
        lambda generator: tasks.addition(9, generator, digits=3).tokens,
        lambda generator: tasks.induction(9, generator, length=8, letters=4).tokens,
        lambda generator: tasks.multi_query_recall(9, generator, length=16, pairs=3, vocabulary=12).tokens,
    ],
)
def test_a_seed_gives_the_same_examples(make: Callable[[torch.Generator], Any]) -> None:
    torch.manual_seed(1)
    first = make(seeded(3))
    torch.manual_seed(2)  # nothing comes from elsewhere
    again, other = make(seeded(3)), make(seeded(4))
    first, again, other = (t if isinstance(t, tuple) else (t,) for t in (first, again, other))
    assert all(map(torch.equal, first, again))
    assert not all(map(torch.equal, first, other))
