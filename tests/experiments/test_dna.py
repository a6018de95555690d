"""The experiment of DNA: its batches, evaluation and Markov models against plain loops, and its command."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from experiments.dna import data, markov
from torch import Tensor, nn

from helpers.experiments import loss_falls


def test_a_short_run(toy: Callable[..., dict[str, Any]]) -> None:
    found = toy("dna", "--seeds", "5")
    counted, *trained = found["runs"]
    assert [run["settings"]["context"] for run in trained] == [64, 256, 64, 256, 256]
    assert all(loss_falls(run) for run in trained)
    assert all(run["result"]["bases"] == 24 * 1024 for run in trained)
    for row, run in zip(found["models"], trained, strict=True):
        assert row["mean"] == row["least"] == run["result"]["bits"] == row["by_context"][-1]["mean"]
        settings = run["settings"]
        assert f"{row['name']:<24}{settings['context']:>8}{row['mean']:>9.4f}" in found["printed"]
    assert [row["name"] for row in found["models"]] == [
        "hyena",
        "hyena",
        "attention",
        "hyena, after short rows",
        "hyena, time unit 64",
    ]
    of_one_context = [[row["bits"] for row in trained[i]["result"]["history"]] for i in (1, 3, 4)]
    assert len({tuple(bits) for bits in of_one_context}) == 3
    assert [each["order"] for each in found["markov"]] == [0, 1, 2, 3, 4]
    assert found["markov"] == counted["result"]["orders"]
    assert counted["result"]["bits"] == min(each["bits"] for each in found["markov"]) < 2.0


def test_batches_are_either_strand() -> None:
    bases = torch.randint(4, (300,), generator=torch.Generator().manual_seed(0))
    text = "".join(data.LETTERS[b] for b in bases)
    other = "".join({"A": "T", "T": "A", "C": "G", "G": "C"}[letter] for letter in reversed(text))
    tokens, targets = data.batch(bases, 40, 30, seed=1, step=2)
    assert torch.equal(tokens[:, 1:], targets[:, :-1])
    rows = ["".join(data.LETTERS[b] for b in row) for row in torch.cat([tokens, targets[:, -1:]], dim=1)]
    forward = [row in text for row in rows]
    assert 5 < sum(forward) < 35
    assert all(row in other for row, is_forward in zip(rows, forward, strict=True) if not is_forward)
    again = data.batch(bases, 40, 30, seed=1, step=2)
    assert torch.equal(tokens, again[0])
    assert not torch.equal(tokens, data.batch(bases, 40, 30, seed=1, step=3)[0])


class HowMany(nn.Module):
    """Says of the next base how many came before it, and which was the last, so that a test can read both off."""

    def __init__(self) -> None:
        super().__init__()
        self.nothing = nn.Parameter(torch.zeros(()))

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits of 0 for the base 3 minus the last, and of ``log(count)`` less for every other one."""
        count = torch.arange(1, tokens.size(1) + 1, dtype=torch.float)
        logits = -count.log()[None, :, None].expand(tokens.size(0), -1, 4).clone()
        return logits.scatter(2, 3 - tokens[..., None], 0.0)


@pytest.mark.parametrize("context", [2, 8, 32])
def test_every_held_out_base_is_predicted_once(context: int) -> None:
    bases = torch.randint(4, (157,), generator=torch.Generator().manual_seed(1))
    first, half = 120, context // 2
    found = data.held_out_bits(HowMany(), bases, first, context)
    assert found.shape == (37,)
    for at in range(first, 157):
        given = context - (157 - 1 - at) % half  # the window's last base has all of the context
        logits = [0.0 if b == 3 - bases[at - 1] else -math.log(given) for b in range(4)]
        expected = math.log2(sum(map(math.exp, logits))) - logits[bases[at]] / math.log(2.0)
        assert found[at - first].item() == pytest.approx(expected, abs=1e-5)
    with pytest.raises(ValueError, match="even, from 2 to the 120 bases before the held-out ones, got 122"):
        data.held_out_bits(HowMany(), bases, first, 122)


def test_markov_models_are_interpolated_counts() -> None:
    bases = torch.randint(4, (400,), generator=torch.Generator().manual_seed(2)) // 2 + torch.arange(400) % 2
    first = 350
    found = markov.held_out_bits(bases, first, 3)
    strands = [bases[:first].tolist(), [3 - b for b in bases[:first].flip(0).tolist()]]

    def probability(history: list[int], base: int, order: int) -> float:
        if order < 0:
            return 0.25
        context = history[len(history) - order :]
        words = [s[i : i + order + 1] for s in strands for i in range(len(s) - order)]
        alike = [word for word in words if word[:-1] == context]
        weight = found[order]["weight"]
        count = sum(word[-1] == base for word in alike)
        return (count + weight * probability(history, base, order - 1)) / (len(alike) + weight)

    sequence = bases.tolist()
    for order in range(4):
        held_out = [-math.log2(probability(sequence[:at], sequence[at], order)) for at in range(first, 400)]
        assert found[order]["bits"] == pytest.approx(sum(held_out) / len(held_out), abs=1e-9)
