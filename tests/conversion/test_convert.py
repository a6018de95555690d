"""hyena.convert on whole models: what it changes, what it reports, and what decodes afterwards."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import hyena
from helpers.attention_models import CausalSelfAttention
from helpers.conversion import (
    FILTER,
    LAYERS,
    QUIET,
    VOCAB,
    D,
    L,
    M,
    endless_pairs,
    language_model,
    pairs,
    same_weights,
    sharpened,
    weights,
)
from hyena.mixers import H3, Attention, HyenaOperator


def test_errors_and_losses_fall() -> None:
    """A language model that was trained, converted."""
    model = language_model()
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for x, y in pairs(200, seed=1, batch=16):
        model.loss(x, y).backward()
        optimizer.step()
        optimizer.zero_grad()
    before = sum(model.loss(x, y).item() for x, y in pairs(4)) / 4
    torch.manual_seed(0)
    report = hyena.convert(
        model, pairs(124, batch=16), layer_steps=60, logit_steps=60, lr=3e-3, **FILTER, **QUIET | {"evaluate": 4}
    )
    assert all(type(block.mixer) is HyenaOperator for block in model.blocks)
    for layer in report.layers:
        assert layer.converted
        assert layer.start == "attention"
        assert layer.error_after < 0.6 * layer.error_before
    assert report.attention.divergence == 0
    assert report.converted.divergence < report.taught.divergence < report.swapped.divergence
    lost = report.swapped.loss - report.attention.loss
    assert lost > 1
    assert report.converted.loss - report.attention.loss < 0.2 * lost  # 0 to 0.1 over seeds and threads
    assert report.converted.loss == pytest.approx(
        sum(model.loss(x, y).item() for x, y in pairs(4, batch=16)) / 4, rel=1e-5
    )
    assert before < 2.5  # of log 20 = 3.0
    assert report.tokens == {
        "layers": 60 * 16 * L,
        "logits": 60 * 16 * L,
        "total": 120 * 16 * L,
        "evaluation": 4 * 16 * L,
    }
    assert report.batches == 124
    assert [len(report.history[stage]) for stage in ("layers", "logits")] == [60, 60]


def test_the_report_prints_and_saves(tmp_path: Path) -> None:
    report = hyena.convert(
        language_model(), pairs(8), layer_steps=3, logit_steps=3, keep=[1], start="random", **FILTER, **QUIET
    )
    text = str(report)
    assert f"converted 2 of 3 layers with {6 * 4 * L} tokens" in text
    assert "blocks.1.mixer" in text
    assert "keep= leaves it" in text
    for words in ("attention", "swapped, untrained", "layers taught", "converted"):
        assert words in text
    report.save(tmp_path / "report.json")
    saved = json.loads((tmp_path / "report.json").read_text())
    assert saved == json.loads(json.dumps(report.to_dict()))
    assert hyena.ConversionReport.from_dict(saved) == report
    assert saved["settings"]["layer_steps"] == 3
    assert "HyenaFilter" in saved["settings"]["replacement"]
    assert saved["versions"]["torch"] == torch.__version__
    assert saved["layers"][1]["error_after"] is None


def test_kept_layers_stay_and_the_worst_too() -> None:
    model = language_model(layers=4)
    report = hyena.convert(
        model, pairs(12), layer_steps=6, logit_steps=4, keep=[0], keep_worst=1, start="random", **FILTER, **QUIET
    )
    kinds = [type(block.mixer) for block in model.blocks]
    assert kinds[0] is Attention
    assert kinds.count(Attention) == 2
    assert [layer.converted for layer in report.layers] == [kind is HyenaOperator for kind in kinds]
    alone = {layer.index: layer.alone for layer in report.layers if layer.alone is not None}
    assert set(alone) == {1, 2, 3}
    worst = next(layer for layer in report.layers if layer.note == "one of the worst")
    assert worst.alone == max(alone.values())
    assert worst.error_after is not None


def test_frozen_weights_stay() -> None:
    model = language_model()
    for name, p in model.named_parameters():
        p.requires_grad_("mixer" in name)
    before = weights(model)
    hyena.convert(model, pairs(8), layer_steps=3, logit_steps=3, start="random", **FILTER, **QUIET)
    for name, t in model.state_dict().items():
        assert "mixer" in name or torch.equal(t, before[name]), name
    assert not model.embedding.weight.requires_grad
    assert all(p.requires_grad for p in model.blocks[0].mixer.parameters())


@pytest.mark.parametrize("training", [True, False])
def test_modes_are_left_as_they_were(training: bool) -> None:
    model = language_model().train(training)
    model.blocks[1].eval()
    modes = {name: part.training for name, part in model.named_modules() if "mixer" not in name}
    hyena.convert(model, pairs(6), layer_steps=2, logit_steps=2, start="random", **FILTER, **QUIET)
    assert {name: part.training for name, part in model.named_modules() if "mixer" not in name} == modes
    assert [block.mixer.training for block in model.blocks] == [training, False, training]


def test_starts() -> None:
    """With "filters" projections stay as they are drawn, with "random" all; the default says why it cannot."""
    reports = {}
    for start in ("attention", "filters", "random"):
        torch.manual_seed(0)
        reports[start] = hyena.convert(
            language_model(), pairs(4), layer_steps=1, logit_steps=1, start=start, **FILTER, **QUIET
        )
        assert {layer.start for layer in reports[start].layers} == {start}
    assert reports["random"].layers[0].filter_error is None
    assert reports["filters"].layers[0].filter_error == pytest.approx(
        reports["attention"].layers[0].filter_error, abs=0.1
    )
    errors = {start: report.layers[0].error_before for start, report in reports.items()}
    assert errors["attention"] < errors["filters"]
    assert errors["attention"] < errors["random"]
    report = hyena.convert(language_model(), pairs(4), layer_steps=1, logit_steps=1, mixer=H3, **QUIET)
    assert {(layer.start, layer.note) for layer in report.layers} == {("random", "a H3 is no HyenaOperator")}


def test_one_stage_alone() -> None:
    first = hyena.convert(language_model(), pairs(5), layer_steps=3, logit_steps=0, start="random", **FILTER, **QUIET)
    assert first.converted == first.taught
    second = hyena.convert(language_model(), pairs(5), layer_steps=0, logit_steps=3, start="random", **FILTER, **QUIET)
    assert [layer.error_before for layer in second.layers] == [layer.error_after for layer in second.layers]
    assert second.steps == {"layers": 0, "logits": 3}


def test_all_batches_are_shared_out_and_may_be_held_apart() -> None:
    report = hyena.convert(language_model(), pairs(10), start="random", **FILTER, **QUIET)
    assert report.steps == {"layers": 2, "logits": 6}
    report = hyena.convert(
        language_model(), pairs(8), logit_steps=5, start="random", **FILTER, **QUIET | {"evaluate": pairs(1, seed=3)}
    )
    assert report.steps == {"layers": 3, "logits": 5}
    assert report.tokens["evaluation"] == 4 * L
    report = hyena.convert(
        language_model(), endless_pairs(), layer_steps=1, logit_steps=1, start="random", **FILTER, **QUIET
    )
    assert report.batches == 4


def test_outputs_that_are_no_logits() -> None:
    """A bare encoder, by the error of its outputs; heads, two-sided, rows that are padded."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(D, M, 2 * D, dropout=0.0, batch_first=True)
    model = sharpened(nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), 2.0).eval()
    original = copy.deepcopy(model)
    ignore = torch.arange(L) >= torch.tensor([L, 5, 7])[:, None]
    batches = [{"src": torch.randn(3, L, D), "src_key_padding_mask": ignore} for _ in range(42)]
    report = hyena.convert(
        model,
        batches,
        objective="mse",
        label_weight=0.0,
        l_max=L,
        multi_head=True,
        lr=3e-3,
        start="random",
        **FILTER,
        **QUIET,
    )
    assert report.attention.loss is None
    assert report.converted.divergence < report.swapped.divergence
    assert report.tokens["total"] == 40 * (L + 5 + 7)
    y, wanted = model(**batches[0])[~ignore], original(**batches[0])[~ignore]
    error = ((y - wanted).square().sum() / wanted.square().sum()).item()
    assert error == pytest.approx(report.converted.divergence, abs=0.2)
    assert model.layers[0].self_attn.operator.num_heads == M


class NanoGPT(nn.Module):
    """nanoGPT's interface: logits of the last position without targets, ``(logits, loss)`` with them."""

    def __init__(self):
        super().__init__()
        self.config = type("Config", (), {"block_size": L})()
        self.wte, self.wpe = nn.Embedding(VOCAB, D), nn.Embedding(L, D)
        self.attn = nn.ModuleList(CausalSelfAttention(D, M) for _ in range(2))
        self.head = nn.Linear(D, VOCAB, bias=False)

    def forward(self, idx: Tensor, targets: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        x = self.wte(idx) + self.wpe.weight[: idx.size(1)]
        for attn in self.attn:
            x = x + attn(x)
        if targets is None:
            return self.head(x[:, [-1]]), None
        logits = self.head(x)
        return logits, nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())


def test_nanogpt() -> None:
    torch.manual_seed(0)
    model = sharpened(NanoGPT().eval(), 2.0)
    batches = [{"idx": x, "targets": y} for x, y in pairs(42)]
    report = hyena.convert(model, batches, lr=3e-3, start="random", **FILTER, **QUIET)
    assert all(layer.error_after < layer.error_before for layer in report.layers)
    assert report.attention.loss is not None
    assert report.converted.divergence < report.swapped.divergence
    assert len(report.layers) == 2


def test_a_function_of_model_and_batch() -> None:
    model = language_model()
    seen = []

    def forward(model: nn.Module, batch: dict) -> tuple[Tensor, Tensor]:
        seen.append(model)
        logits = model(batch["text"])[:, 3:]
        return logits, nn.functional.cross_entropy(logits.flatten(0, 1), batch["next"][:, 3:].flatten())

    batches = [{"text": x, "next": y} for x, y in pairs(6)]
    report = hyena.convert(
        model, batches, layer_steps=2, logit_steps=2, forward=forward, start="random", **FILTER, **QUIET
    )
    assert report.converted.loss is not None
    assert len({id(m) for m in seen}) == 2  # the model and its frozen copy


def test_converted_model_decodes_step_by_step() -> None:
    model = language_model()
    hyena.convert(model, pairs(8), layer_steps=3, logit_steps=3, keep=[1], start="random", **FILTER, **QUIET)
    tokens = pairs(1)[0][0]
    state = model.init_state(4)
    first, state = model.prefill(tokens[:, :7], state)
    more = [model.step(tokens[:, t], state)[0] for t in range(7, L)]
    together = torch.cat([first, torch.stack(more, dim=1)], dim=1)
    torch.testing.assert_close(together, model(tokens), rtol=0, atol=1e-4)


def test_a_frozen_copy_teaches_and_the_callers_model_is_trained() -> None:
    """Every weight of the model takes part in the second stage, and the attention is gone from it."""
    model = language_model()
    before = weights(model)
    hyena.convert(model, pairs(8), layer_steps=2, logit_steps=4, start="random", **FILTER, **QUIET)
    after = weights(model)
    shared = [name for name in before if name in after and "mixer" not in name]
    assert len(shared) > 10
    assert not any(torch.equal(before[name], after[name]) for name in shared)
    assert sum(isinstance(m, Attention) for m in model.modules()) == 0
    assert not same_weights(before, after)
    assert sum(isinstance(m, HyenaOperator) for m in model.modules()) == LAYERS


class Recalling(nn.Module):
    """Attention of one's own: positions first, a padding mask, a cache that it writes to."""

    def __init__(self):
        super().__init__()
        self.inner = nn.MultiheadAttention(D, M)

    def forward(self, x: Tensor, pad: Tensor | None = None, cache: dict | None = None) -> Tensor:
        if cache is not None:
            cache["calls"] = cache.get("calls", 0) + 1
        return self.inner(x, x, x, key_padding_mask=pad)[0]


class Recall(hyena.AttentionAdapter):
    batch_first = False
    masks = {"pad": "ignore"}  # noqa: RUF012
    cache = "cache"

    def history(self, cache: dict) -> object:
        raise AssertionError("a conversion hands on no cache")


class Recaller(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention, self.head = Recalling(), nn.Linear(D, 5)
        self.caches: list[dict] = []

    def forward(self, x: Tensor, src_key_padding_mask: Tensor) -> Tensor:
        self.caches.append({})
        cache = self.caches[-1] if isinstance(self.attention, Recalling) else None
        return self.head(self.attention(x.transpose(0, 1), src_key_padding_mask, cache)).transpose(0, 1)


def test_an_adapter_of_ones_own() -> None:
    torch.manual_seed(0)
    hyena.register_attention(Recalling, lambda site: Recall(site.mixer(D, heads=M), site.module))
    model = Recaller().eval()
    ignore = torch.arange(L) >= torch.tensor([L, 5, 7])[:, None]
    batches = [{"x": torch.randn(3, L, D), "src_key_padding_mask": ignore} for _ in range(32)]

    def forward(model: nn.Module, batch: dict) -> Tensor:
        return model(**batch)[~batch["src_key_padding_mask"]]

    settings = {"label_weight": 0.0, "l_max": L, "start": "random", "forward": forward, "lr": 3e-3} | FILTER | QUIET
    report = hyena.convert(model, batches, layer_steps=25, logit_steps=5, **settings)
    assert report.tokens["total"] == 30 * (L + 5 + 7)
    assert report.layers[0].error_after < report.layers[0].error_before
    assert isinstance(model.attention, Recall)
    assert {cache.get("calls", 1) for cache in model.caches} == {1}
