"""Epochs over fixed examples, and loss and accuracy where something is to be predicted."""

from __future__ import annotations

import pytest
import torch
from experiments.shared.examples import IGNORED, accuracy, epochs, last_only, loss, steps_of_epoch
from experiments.shared.models import language_model
from hypothesis import given
from hypothesis import strategies as st

TOKENS = torch.arange(24).view(4, 6) % 5


def model(*, length: int = 6, vocabulary: int = 5):
    torch.manual_seed(0)
    return language_model("hyena", vocabulary, length, width=8, layers=1).double().eval()


@given(count=st.integers(1, 30), batch=st.integers(1, 12), seed=st.integers(0, 1000))
def test_each_example_once_an_epoch(count: int, batch: int, seed: int) -> None:
    inputs = torch.arange(count)
    chosen = epochs(inputs, -inputs, batch, seed)
    steps = steps_of_epoch(count, batch)
    orders = []
    for epoch in range(3):
        batches = [chosen(epoch * steps + i) for i in range(steps)]
        assert all(len(x) == batch for x, _ in batches[:-1])
        assert all(torch.equal(x, -y) for x, y in batches)
        orders.append(torch.cat([x for x, _ in batches]).tolist())
        assert sorted(orders[-1]) == list(range(count))
    assert count < 9 or orders[0] != orders[1] != orders[2]
    assert torch.equal(chosen(steps)[0], epochs(inputs, -inputs, batch, seed)(steps)[0])  # whatever was asked before


def test_last_only() -> None:
    kept = last_only(TOKENS)
    assert torch.equal(kept[:, -1], TOKENS[:, -1])
    assert (kept[:, :-1] == IGNORED).all()


@pytest.mark.parametrize("some", [False, True])
def test_loss_and_accuracy_by_hand(some: bool) -> None:
    net = model()
    targets = (TOKENS * 3 + 1) % 5
    if some:
        targets[:, [0, 2]] = IGNORED
        targets[1] = IGNORED
        targets[1, 4] = 0
    probabilities = net(TOKENS).softmax(-1)
    # Right at some positions by making what the model says the target.
    said = probabilities.argmax(-1)
    targets[2] = torch.where(targets[2] == IGNORED, targets[2], said[2])
    losses, right, whole = [], [], 0
    for i in range(4):
        row = []
        for t in range(6):
            if targets[i, t] != IGNORED:
                losses.append(-probabilities[i, t, targets[i, t]].log())
                row.append(bool(said[i, t] == targets[i, t]))
        right += row
        whole += all(row)
    assert loss(net, TOKENS, targets).item() == pytest.approx(sum(losses).item() / len(losses), rel=1e-12)
    assert whole >= 1
    for batch in (1, 3, 4):
        found = accuracy(net, TOKENS, targets, batch)
        assert found == pytest.approx({"accuracy": sum(right) / len(right), "whole": whole / 4})


def test_gradients_are_those_of_all_logits() -> None:
    net = model()
    targets = last_only(TOKENS)
    loss(net, TOKENS, targets).backward()
    found = {name: p.grad.clone() for name, p in net.named_parameters() if p.grad is not None}
    net.zero_grad()
    net.loss(TOKENS, targets).backward()
    for name, p in net.named_parameters():
        if p.grad is not None:
            torch.testing.assert_close(found[name], p.grad)


def test_checkpointing_changes_nothing() -> None:
    found = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        net = language_model("hyena", 5, 6, width=8, layers=2, gradient_checkpointing=checkpointing).double()
        assert net.config.gradient_checkpointing is checkpointing
        loss(net, TOKENS, last_only(TOKENS)).backward()
        found.append({name: p.grad for name, p in net.named_parameters()})
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient)
