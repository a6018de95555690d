"""hyena.convert on models of transformers: padding, shifted labels, heads, and generate with a cache afterwards."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

import hyena
from helpers.conversion import QUIET

transformers = pytest.importorskip("transformers")
from helpers.transformers_models import KINDS, VOCAB, L, padding  # noqa: E402

FILTER = {"filter": lambda *a, **k: hyena.HyenaFilter(*a, emb_dim=5, width=16, freq=1.0, **k)}
STEPS = {"layer_steps": 15, "logit_steps": 15, "start": "random", "label_weight": 0.0}


def batches(count: int, side: str, causal: bool) -> list[dict[str, Tensor]]:
    """Rows of 12, 7 and 1 tokens."""
    g = torch.Generator().manual_seed(0)
    mask, _ = padding(side)
    made = []
    for _ in range(count):
        tokens = torch.randint(4, VOCAB, (3, L), generator=g)
        labels = tokens.masked_fill(mask == 0, -100)
        if not causal:
            labels = labels.masked_fill(torch.rand(labels.shape, generator=g) < 0.5, -100)
        made.append({"input_ids": tokens, "attention_mask": mask, "labels": labels})
    return made


def model_of(name: str) -> nn.Module:
    model = KINDS[name].make()
    with torch.no_grad():  # transformers' initial weights make attention flat
        for p in model.parameters():
            if p.dim() == 2:
                p *= 8
    return model.float()


@pytest.mark.parametrize(
    ("name", "side", "options"),
    [
        ("llama", "left", {}),
        ("gpt2", "right", {}),
        ("bert", "left", {}),
        ("gpt_neox", "left", {"multi_head": True}),
        ("distilbert", "right", {"keep": [0]}),
    ],
)
def test_converts(name: str, side: str, options: dict) -> None:
    kind = KINDS[name]
    model = model_of(name)
    original = copy.deepcopy(model)
    given = batches(32, side, kind.causal[0])
    torch.manual_seed(0)
    report = hyena.convert(model, given, **STEPS, **options, **FILTER, **QUIET)
    done = [layer for layer in report.layers if layer.converted]
    assert len(done) == 2 - len(options.get("keep", ()))
    assert all(layer.error_after < layer.error_before for layer in done)
    assert report.converted.divergence < report.swapped.divergence
    assert report.tokens["total"] == 30 * (12 + 7 + 1)
    # The loss is the model's own, of labels that causal models shift.
    with torch.no_grad():
        expected = sum(original(**batch).loss.item() for batch in given[:2]) / 2
    assert report.attention.loss == pytest.approx(expected, rel=1e-5)

    # What a padded row gets is what it gets alone, after the conversion too.
    mask, at = padding(side)
    tokens = given[0]["input_ids"]
    more = {"position_ids": at} if name != "distilbert" else {}
    logits = model(input_ids=tokens, attention_mask=mask, **more).logits
    for b in range(3):
        row = tokens[b : b + 1, mask[b] == 1]
        torch.testing.assert_close(logits[b, mask[b] == 1], model(input_ids=row).logits[0], rtol=0, atol=2e-4)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_generates_with_a_cache(name: str) -> None:
    model = model_of(name)
    hyena.convert(
        model, batches(8, "left", True), layer_steps=3, logit_steps=3, keep_worst=1, start="random", **FILTER, **QUIET
    )
    model.double().eval()
    mask, _ = padding("left")
    prompt = {"input_ids": batches(1, "left", True)[0]["input_ids"], "attention_mask": mask}
    settings = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None}
    with_cache = model.generate(**prompt, use_cache=True, **settings)
    assert torch.equal(with_cache, model.generate(**prompt, use_cache=False, **settings))


def test_a_kept_layer_of_gpt2_has_its_causal_mask() -> None:
    """A model that keeps attention must not get the short masks of one that has none."""
    model = model_of("gpt2")
    hyena.convert(
        model, batches(8, "right", True), layer_steps=2, logit_steps=2, keep_worst=1, start="random", **FILTER, **QUIET
    )
    tokens = batches(1, "right", True)[0]["input_ids"]
    changed = tokens.clone()
    changed[:, -1] = 5
    mask = torch.ones_like(tokens)
    a, b = (model(input_ids=x, attention_mask=mask).logits for x in (tokens, changed))
    torch.testing.assert_close(a[:, :-1], b[:, :-1], rtol=0, atol=1e-5)


def test_saves_and_loads(tmp_path) -> None:
    model = model_of("gpt2")
    hyena.convert(
        model, batches(6, "right", True), layer_steps=2, logit_steps=2, filter_groups=4, start="random", **QUIET
    )
    model.save_pretrained(tmp_path)
    loaded = hyena.integrations.load_pretrained(tmp_path)
    tokens = batches(1, "right", True)[0]["input_ids"]
    torch.testing.assert_close(loaded(tokens).logits, model.eval()(tokens).logits, rtol=0, atol=1e-5)


def test_starts_from_attention() -> None:
    """Grouped queries, rotary positions, padding: closer than a random start before any training."""
    errors = {}
    for start in ("attention", "random"):
        torch.manual_seed(0)
        given = batches(4, "left", True)
        report = hyena.convert(model_of("llama"), given, layer_steps=1, logit_steps=1, start=start, **FILTER, **QUIET)
        errors[start] = [layer.error_before for layer in report.layers]
        assert {layer.start for layer in report.layers} == {start}
    assert all(a < 0.8 * r for a, r in zip(errors["attention"], errors["random"], strict=True))


def test_values_of_another_width_give_filters_alone() -> None:
    """Gemma's heads may be wider than the model, as its first size has them."""
    model = KINDS["gemma"].make(head_dim=8).float()
    report = hyena.convert(model, batches(4, "left", True), layer_steps=1, logit_steps=1, **FILTER, **QUIET)
    assert {layer.start for layer in report.layers} == {"filters"}
    assert "32 channels, and the mixer is 16 wide" in report.layers[0].note


def test_t5_cannot_keep_its_worst() -> None:
    """Its first layer computes positions for the rest: said before anything is trained."""
    model = KINDS["t5"].make().float()
    with pytest.raises(ValueError, match="keep its first"):
        hyena.convert(model, [], layer_steps=1, logit_steps=1, keep_worst=1, l_max=48, **QUIET)
