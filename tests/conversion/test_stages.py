"""The two stages against their definitions: what is minimised, over which positions, of which weights."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from helpers.conversion import FILTER, VOCAB, D, L, M, language_model, pairs, sharpened, weights
from hyena.conversion.joint import Joint
from hyena.conversion.layers import layers_of, substituted
from hyena.conversion.matching import Matching
from hyena.conversion.measure import Evaluation
from hyena.conversion.optimizer import Optimizer
from hyena.conversion.outputs import divergence, kept, outcome, relative_error
from hyena.conversion.settings import Settings, schedule
from hyena.integrations.replace import plan_replacement

SETTINGS = {
    "layer_steps": 1,
    "logit_steps": 1,
    "keep": (),
    "keep_worst": 0,
    "start": None,
    "evaluate": 1,
    "start_batches": 1,
    "lr": 1e-3,
    "logit_lr": 1e-3,
    "weight_decay": 0.0,
    "temperature": 1.0,
    "label_weight": 0.5,
    "objective": "kl",
}


class NoStep:
    """Stands for an optimizer: leaves gradients where they are."""

    def step(self) -> None:
        pass


def padded(side: str) -> tuple[dict[str, Tensor], Tensor]:
    (tokens, labels), *_ = pairs(1)
    size = torch.tensor([L, 7, 3, 1])[:, None]
    keep = torch.arange(L) < size if side == "right" else torch.arange(L) >= L - size
    return {"tokens": tokens, "mask": keep, "labels": labels.masked_fill(~keep, -100)}, keep


def test_divergence_and_error_by_definition() -> None:
    torch.manual_seed(0)
    student, teacher = torch.randn(2, 3, 5), torch.randn(2, 3, 5)
    keep = torch.tensor([[True, True, False], [True, False, False]])
    total, wrong, size = 0.0, 0.0, 0.0
    for b, t in keep.nonzero().tolist():
        p = (teacher[b, t].double() / 3.0).softmax(0)
        q = (student[b, t].double() / 3.0).softmax(0)
        total += 9.0 * sum(float(p[i] * (p[i].log() - q[i].log())) for i in range(5))
        wrong += float((student[b, t] - teacher[b, t]).double().square().sum())
        size += float(teacher[b, t].double().square().sum())
    assert divergence(student, teacher, keep, 3.0).item() == pytest.approx(total / 3, rel=1e-5)
    assert relative_error(student, teacher, keep).item() == pytest.approx(wrong / size, rel=1e-5)
    assert divergence(teacher, teacher, None).item() == 0


@pytest.mark.parametrize("side", ["left", "right"])
def test_first_stage_is_each_layer_alone_on_the_kept_positions(side: str) -> None:
    """Gradients of all layers in one pass are those of each on rows without their padding."""
    model = language_model().double()
    layers = layers_of(plan_replacement(model, **FILTER).swaps)
    batch, keep = padded(side)
    matching = Matching(model, layers, None, NoStep())
    value, tokens = matching.step(batch)
    assert tokens == int(keep.sum())
    found = [{n: p.grad.clone() for n, p in layer.new.named_parameters()} for layer in layers]
    assert all(p.grad is None for p in model.parameters())

    inputs: list[list[Tensor]] = [[] for _ in layers]
    for i, layer in enumerate(layers):
        layer.old.register_forward_hook(lambda m, a, y, i=i: inputs[i].append((a[0], y)))
    with torch.no_grad():
        for b in range(keep.size(0)):
            model(batch["tokens"][b : b + 1, keep[b]])
    errors = []
    for i, layer in enumerate(layers):
        layer.new.zero_grad()
        wrong = sum((layer.new(u) - y).square().sum() for u, y in inputs[i])
        loss = wrong / sum(y.square().sum() for _, y in inputs[i])
        loss.backward()
        errors.append(loss.item())
        for name, p in layer.new.named_parameters():
            torch.testing.assert_close(found[i][name], p.grad, rtol=1e-6, atol=1e-9, msg=name)
    assert value == pytest.approx(sum(errors) / len(errors), rel=1e-9)


@pytest.mark.parametrize("side", ["left", "right"])
def test_second_stage_by_definition(side: str) -> None:
    """The loss and every gradient, from rows without their padding."""
    student, teacher = language_model(0).double(), language_model(1).double()
    plan = plan_replacement(student, **FILTER)
    plan.carry_out(student)
    settings = Settings(**SETTINGS | {"temperature": 2.0, "label_weight": 0.25})
    batch, keep = padded(side)
    joint = Joint(student, teacher, layers_of(plan.swaps), None, settings, NoStep())
    value, tokens = joint.step(batch)
    assert tokens == int(keep.sum())
    found = {n: p.grad.clone() for n, p in student.named_parameters()}
    assert all(p.grad is None for p in teacher.parameters())

    student.zero_grad()
    loss, count = torch.zeros((), dtype=torch.float64), int(keep.sum())
    for b in range(keep.size(0)):
        row, labels = batch["tokens"][b : b + 1, keep[b]], batch["labels"][b, keep[b]]
        q = student(row)[0]
        with torch.no_grad():
            p = (teacher(row)[0] / 2.0).softmax(-1)
        kl = (p * (p.log() - (q / 2.0).log_softmax(-1))).sum()
        true = -q.log_softmax(-1)[torch.arange(len(labels)), labels].sum()
        loss = loss + (0.75 * 4.0 * kl + 0.25 * true) / count
    loss.backward()
    assert value == pytest.approx(loss.item(), rel=1e-9)
    for name, p in student.named_parameters():
        torch.testing.assert_close(found[name], p.grad, rtol=1e-7, atol=1e-10, msg=name)


def test_evaluation_reports_what_a_swapped_model_gives() -> None:
    """Errors and losses without swapping are those after it."""
    model = language_model()
    plan = plan_replacement(model, **FILTER)
    layers = layers_of(plan.swaps)
    batches = pairs(2)
    before = weights(model)
    evaluation = Evaluation(batches, None, "kl")
    swapped, one = evaluation.swapped(model, layers), evaluation.swapped(model, layers[1:2])
    errors, tokens = evaluation.errors(model, layers)
    assert tokens == 2 * 4 * L
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())

    teacher = copy.deepcopy(model)
    plan.carry_out(model)
    expected = sum(model.loss(x, y).item() for x, y in batches) / 2
    assert swapped.loss == pytest.approx(expected, rel=1e-5)
    kl = [divergence(model(x), teacher(x), None).item() for x, _ in batches]
    assert swapped.divergence == pytest.approx(sum(kl) / 2, rel=1e-4)
    assert one.divergence < swapped.divergence
    mixed = copy.deepcopy(teacher)
    mixed.blocks[1].mixer = layers[1].new
    kl = [divergence(mixed(x), teacher(x), None).item() for x, _ in batches]
    assert one.divergence == pytest.approx(sum(kl) / 2, rel=1e-4)
    first = teacher.blocks[0]
    with torch.no_grad():
        inputs = [first.norm1(teacher.embed(x, torch.arange(L))) for x, _ in batches]
        wrong = sum((layers[0].new(u) - first.mixer(u)).square().sum() for u in inputs)
        error = wrong / sum(first.mixer(u).square().sum() for u in inputs)
    assert errors[0] == pytest.approx(float(error), rel=1e-4)


class Classifier(nn.Module):
    """PyTorch's encoder with an embedding and a head."""

    def __init__(self, batch_first: bool):
        super().__init__()
        layer = nn.TransformerEncoderLayer(D, M, 2 * D, dropout=0.0, batch_first=batch_first)
        self.embedding, self.encoder = nn.Embedding(VOCAB, D), nn.TransformerEncoder(layer, 2)
        self.head = nn.Linear(D, VOCAB)

    def forward(self, x: Tensor, src_key_padding_mask: Tensor | None = None) -> Tensor:
        return self.head(self.encoder(self.embedding(x), src_key_padding_mask=src_key_padding_mask))


@pytest.mark.parametrize("batch_first", [True, False])
def test_padding_of_pytorchs_encoder_does_not_count(batch_first: bool) -> None:
    """Also with as many rows as positions, and although the encoder has a fused path that zeroes padding."""
    torch.manual_seed(0)
    model = sharpened(Classifier(batch_first), 2.0).double().eval()
    length = 5
    tokens = torch.randint(VOCAB, (length, length))
    ignore = torch.arange(length) >= torch.tensor([5, 5, 4, 2, 1])[:, None]
    batch = {"x": tokens if batch_first else tokens.t(), "src_key_padding_mask": ignore}
    with torch.no_grad():
        logits = outcome(model, batch).logits
        keep = kept(model, batch, logits)
        other = batch | {"x": batch["x"].masked_fill(ignore if batch_first else ignore.t(), 7)}
        changed = outcome(model, other).logits
    torch.testing.assert_close(logits[keep], changed[keep], rtol=0, atol=1e-10)
    assert keep.sum() == 17
    assert not torch.allclose(logits[~keep], changed[~keep])

    layers = layers_of(plan_replacement(model, l_max=length, **FILTER).swaps)
    values = [Matching(model, layers, None, NoStep()).step(b) for b in (batch, other)]
    assert values[0][1] == 17
    assert values[0][0] == pytest.approx(values[1][0], rel=1e-9)
    assert torch.backends.mha.get_fastpath_enabled()


def test_gradients_clipped_and_rates_scheduled() -> None:
    rates = [schedule(step, 100) for step in range(100)]
    assert rates[0] == pytest.approx(1 / 6)
    assert max(rates) == rates[5] == 1
    assert rates[5:] == sorted(rates[5:], reverse=True)
    assert rates[-1] == pytest.approx(0.1, abs=1e-3)
    layer = nn.Linear(3, 3)
    optimizer = Optimizer(layer, 0.1, 0.0, 10, 1.0)
    for p in layer.parameters():
        p.grad = torch.full_like(p, 100.0)
    optimizer.step()
    assert optimizer.adamw.param_groups[0]["lr"] == pytest.approx(0.1)  # 10 steps have no rise
    assert all(p.grad is None for p in layer.parameters())


def test_substitution_leaves_nothing_behind() -> None:
    model = language_model()
    layers = layers_of(plan_replacement(model, **FILTER).swaps)
    before = model(pairs(1)[0][0])
    with substituted(layers):
        assert not torch.allclose(model(pairs(1)[0][0]), before)
    assert torch.equal(model(pairs(1)[0][0]), before)
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in model.modules())
