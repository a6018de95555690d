"""Models for transformers' Auto classes: what each computes, and what any model of transformers owes.

These are this library's equivalents of transformers' own common model tests.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers
from torch.nn import functional as F

from helpers.auto_models import NAMES, L, V, build, config, labels, result, tokens
from hyena.integrations import auto
from hyena.models import CausalLM, CausalLMConfig

EXACT = {"rtol": 1e-9, "atol": 1e-9}
AUTO = {
    "Model": "AutoModel",
    "ForCausalLM": "AutoModelForCausalLM",
    "ForMaskedLM": "AutoModelForMaskedLM",
    "ForSequenceClassification": "AutoModelForSequenceClassification",
    "ForTokenClassification": "AutoModelForTokenClassification",
}


def auto_class(name: str) -> type:
    return getattr(transformers, AUTO[name.removeprefix("Hyena").removeprefix("DNA")])


@pytest.mark.parametrize("name", NAMES)
def test_found_by_auto_classes(name: str):
    model = auto_class(name).from_config(config(name))
    assert type(model).__name__ == name
    assert type(transformers.AutoConfig.for_model(model.config.model_type)) is type(model.config)


@pytest.mark.parametrize(("name", "shard"), [*((n, "5GB") for n in NAMES), *((n, "4KB") for n in NAMES[1::5])])
def test_saved_and_loaded(name: str, shard: str, tmp_path: Path):
    model = build(name, torch.float32)
    model.save_pretrained(tmp_path, max_shard_size=shard)
    assert (tmp_path / "model.safetensors").exists() == (shard == "5GB")
    again, found = auto_class(name).from_pretrained(tmp_path, output_loading_info=True)
    assert not any(found.values()), found
    assert type(again) is type(model)
    assert not again.training
    assert torch.equal(result(again(tokens(name))), result(model(tokens(name))))
    trained = {key for key, p in model.named_parameters() if p.requires_grad}
    assert {key for key, p in again.named_parameters() if p.requires_grad} == trained
    base = transformers.AutoModel.from_pretrained(tmp_path)
    want = getattr(model, "model", model)(tokens(name)).last_hidden_state
    assert torch.equal(base(tokens(name)).last_hidden_state, want)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("name", ["HyenaForCausalLM", "HyenaForMaskedLM", "HyenaDNAForCausalLM"])
def test_tied_embeddings(name: str, tied: bool, tmp_path: Path):
    model = build(name, torch.float32, tie_word_embeddings=tied)
    model.save_pretrained(tmp_path)
    again = auto_class(name).from_pretrained(tmp_path)
    for each in (model, again):
        assert (each.lm_head.weight is each.get_input_embeddings().weight) == tied
    assert torch.equal(again(tokens(name)).logits, model(tokens(name)).logits)


def test_computes_what_the_library_does():
    """The same weights in hyena.models.CausalLM, which is compared with explicit matrices in its own tests."""
    model = build()
    c = model.config
    ours = CausalLM(
        CausalLMConfig(V, c.l_max, c.d_model, c.num_layers, mixer_options=c.mixer_options), dtype=torch.float64
    ).eval()
    state = {key.removeprefix("model."): t for key, t in model.state_dict().items() if key != "lm_head.weight"}
    ours.load_state_dict({**state, "head.weight": model.lm_head.weight})
    ids = tokens()
    assert torch.equal(model(ids).logits, ours(ids))
    mask = torch.ones_like(ids)
    mask[1, :4] = 0
    assert torch.equal(model(ids, attention_mask=mask).logits, ours(ids, mask))


@pytest.mark.parametrize("name", ["HyenaForCausalLM", "HyenaForMaskedLM", "HyenaDNAForCausalLM"])
def test_logits_are_the_output_layer_s(name: str):
    model, ids = build(name), tokens(name)
    hidden = model.model(ids).last_hidden_state
    want = torch.einsum("bld,vd->blv", hidden, model.lm_head.weight)
    torch.testing.assert_close(model(ids).logits, want)


def test_a_new_model_starts_as_the_library_s():
    model = auto.HyenaForCausalLM(config(d_model=64, vocab_size=400))
    ours = CausalLM(CausalLMConfig(400, 64, 64, 2))
    for key, p in ours.named_parameters():
        if p.numel() >= 4096 and "filter" not in key:
            mine = model.get_parameter("lm_head.weight" if key == "head.weight" else f"model.{key}")
            assert mine.std().item() == pytest.approx(p.std().item(), rel=0.05), key


# HyenaDNA has Hyena operators only.
MIXED = [(n, m) for n in NAMES if "Sequence" not in n for m in ("HyenaOperator", "Attention")[: 1 if "DNA" in n else 2]]


@pytest.mark.parametrize(("name", "mixer"), MIXED)
def test_padding_anywhere_changes_nothing(name: str, mixer: str):
    """Rows padded on either side have the outputs that they have alone, and a hole takes part in nothing."""
    options = {} if "DNA" in name else {"mixer": mixer}
    if mixer == "Attention":
        options["mixer_options"] = {"num_heads": 2}
    model = build(name, **options)
    ids = tokens(name)
    mask = torch.ones_like(ids)
    mask[0, :5], mask[1, 9:], mask[2, 3:6] = 0, 0, 0
    got = result(model(ids, attention_mask=mask))
    for i in range(2):
        keep = mask[i].bool()
        torch.testing.assert_close(got[i, keep], result(model(ids[i : i + 1, keep]))[0], **EXACT)
    other = torch.where(mask.bool(), ids, ids.flip(0))
    assert not torch.equal(other, ids)
    assert torch.equal(result(model(other, attention_mask=mask))[mask.bool()], got[mask.bool()])
    assert not torch.allclose(result(model(ids))[2, 6:], got[2, 6:])


@pytest.mark.parametrize("causal", [True, False])
def test_direction(causal: bool):
    model = build("HyenaForCausalLM" if causal else "HyenaForMaskedLM")
    assert model.config.causal in (None, True) if causal else model.config.causal is False
    ids = tokens()
    later = ids.clone()
    later[:, -1] = (ids[:, -1] - 3 + 1) % (V - 3) + 3
    change = (model(later).logits - model(ids).logits).abs().amax(-1)  # (B, L)
    assert bool((change[:, :-1] < 1e-12).all()) == causal
    assert (change[:, -1] > 0).all()


@pytest.mark.parametrize("pooling", ["last", "mean"])
@pytest.mark.parametrize("causal", [True, False])
def test_classes_of_a_sequence(pooling: str, causal: bool):
    model = build("HyenaForSequenceClassification", pooling=pooling, causal=causal, num_labels=3)
    ids = tokens()
    mask = torch.ones_like(ids)
    mask[0, :5], mask[1, 9:], mask[2, 3:6] = 0, 0, 0
    got = model(ids, attention_mask=mask).logits
    assert got.shape == (3, 3)
    hidden = model.model(ids, attention_mask=mask).last_hidden_state
    for i in range(3):
        kept = hidden[i, mask[i].bool()]
        torch.testing.assert_close(got[i], model.score(kept[-1] if pooling == "last" else kept.mean(0)), **EXACT)
        if i < 2:
            torch.testing.assert_close(got[i], model(ids[i : i + 1, mask[i].bool()]).logits[0], **EXACT)
    # Without a mask, tokens of padding are not read from; on the right of a causal model they change nothing.
    if causal:
        padded = ids.clone()
        padded[1, 9:] = model.config.pad_token_id
        torch.testing.assert_close(model(padded[1:2]).logits[0], got[1], **EXACT)


def test_losses():
    ids = tokens()
    mask = torch.ones_like(ids)
    mask[0, :5], mask[1, 9:] = 0, 0
    wanted = ids.clone()
    wanted[2, 4] = -100
    model = build()
    out = model(ids, attention_mask=mask, labels=wanted)
    rows = [model(ids[i : i + 1, mask[i].bool()]).logits[0] for i in range(3)]
    targets = [wanted[i, mask[i].bool()] for i in range(3)]
    terms = torch.cat(
        [F.cross_entropy(r[:-1], t[1:], reduction="none")[t[1:] >= 0] for r, t in zip(rows, targets, strict=True)]
    )
    torch.testing.assert_close(out.loss.double(), terms.mean(), rtol=1e-5, atol=0)
    divided = model(ids, attention_mask=mask, labels=wanted, num_items_in_batch=50).loss
    torch.testing.assert_close(divided.double(), terms.sum() / 50, rtol=1e-5, atol=0)

    for name in ("HyenaForMaskedLM", "HyenaForTokenClassification"):
        model = build(name)
        wanted = labels(name, ids).masked_fill(torch.rand(ids.shape) < 0.5, -100)
        out = model(ids, attention_mask=mask, labels=wanted)
        counted = mask.bool() & (wanted >= 0)
        want = F.cross_entropy(out.logits[counted], wanted[counted])
        torch.testing.assert_close(out.loss.double(), want, rtol=1e-5, atol=0)

    model = build("HyenaForSequenceClassification", num_labels=3)
    logits = model(ids, attention_mask=mask).logits
    wanted = torch.tensor([2, 0, 1])
    assert torch.equal(model(ids, attention_mask=mask, labels=wanted).loss, F.cross_entropy(logits, wanted))
    model = build("HyenaForSequenceClassification", num_labels=1)
    logits, wanted = model(ids).logits, torch.randn(3, dtype=torch.float64)
    assert torch.equal(model(ids, labels=wanted).loss, F.mse_loss(logits[:, 0], wanted))
    model = build("HyenaForSequenceClassification", num_labels=3, problem_type="multi_label_classification")
    logits, wanted = model(ids).logits, torch.randint(2, (3, 3)).double()
    assert torch.equal(model(ids, labels=wanted).loss, F.binary_cross_entropy_with_logits(logits, wanted))


@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_learns(name: str):
    model = build(name, torch.float32).train()
    ids = tokens(name)
    if name.endswith("Model"):
        model(ids).last_hidden_state.square().sum().backward()
    else:
        model(ids, labels=labels(name, ids)).loss.backward()
    unused = [key for key, p in model.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())]
    assert unused == []


@pytest.mark.parametrize(("name", "reentrant"), [*((n, False) for n in NAMES), *((n, True) for n in NAMES[1::5])])
def test_gradient_checkpointing(name: str, reentrant: bool):
    model = build(name).train()
    ids, inner = tokens(name), getattr(model, "model", model)
    calls: list[int] = []
    inner.blocks[0].mixer.register_forward_hook(lambda *args: calls.append(1))
    grads = []
    for checkpointing in (False, True):
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": reentrant})
            model.enable_input_require_grads()
        model.zero_grad()
        out = result(model(ids, use_cache=False) if "CausalLM" in name or name.endswith("Model") else model(ids))
        out.square().sum().backward()
        grads.append({key: p.grad.clone() for key, p in model.named_parameters() if p.grad is not None})
    assert len(calls) == 3  # once, and then twice
    torch.testing.assert_close(grads[1], grads[0], **EXACT)
    assert len(grads[0]) == len([p for p in model.parameters() if p.requires_grad])


@pytest.mark.parametrize("name", NAMES)
def test_embeddings_in_place_of_tokens(name: str):
    model, ids = build(name), tokens(name)
    embedded = model.get_input_embeddings()(ids)
    assert torch.equal(result(model(inputs_embeds=embedded)), result(model(ids)))
    for given in ({}, {"input_ids": ids, "inputs_embeds": embedded}):
        with pytest.raises(ValueError, match="either input_ids or inputs_embeds"):
            model(**given)


@pytest.mark.parametrize("name", NAMES)
def test_outputs(name: str):
    model, ids = build(name), tokens(name)
    out = model(ids, output_hidden_states=True)
    assert len(out.hidden_states) == model.config.num_hidden_layers + 1
    assert torch.equal(out.hidden_states[0], model.get_input_embeddings()(ids))
    assert torch.equal(out.hidden_states[-1], getattr(model, "model", model)(ids).last_hidden_state)
    block = getattr(model, "model", model).blocks[0]
    assert torch.equal(out.hidden_states[1], block(out.hidden_states[0]))
    as_tuple = model(ids, return_dict=False)
    assert isinstance(as_tuple, tuple)
    assert torch.equal(as_tuple[0], result(out))
    model.config.output_hidden_states = True
    assert model(ids).hidden_states is not None
    with pytest.raises(ValueError, match="there are no attention maps"):
        model(ids, output_attentions=True)
    with pytest.raises(TypeError, match="head_mask"):
        model(ids, head_mask=None)


def test_logits_to_keep():
    model, ids = build(), tokens()
    hidden, whole = model.model(ids).last_hidden_state, model(ids).logits
    for keep, places in ((3, slice(-3, None)), (torch.tensor([1, 5]), [1, 5])):
        got = model(ids, logits_to_keep=keep).logits
        assert torch.equal(got, model.lm_head(hidden[:, places]))
        # A product of fewer rows may add up in another order.
        torch.testing.assert_close(got, whole[:, places], rtol=1e-14, atol=1e-14)
    with pytest.raises(ValueError, match="logits_to_keep=3 with labels"):
        model(ids, labels=ids, logits_to_keep=3)


@pytest.mark.parametrize("name", NAMES)
def test_resized_vocabulary(name: str, tmp_path: Path):
    model, ids = build(name, torch.float32), tokens(name)
    want = result(model(ids))
    size = 20 if "DNA" in name else V + 5
    model.resize_token_embeddings(size)
    rows = 24 if "DNA" in name else size
    assert model.config.vocab_size == size
    assert model.get_input_embeddings().weight.shape[0] == rows
    got = result(model(ids))
    if hasattr(model, "lm_head"):
        assert got.shape[-1] == rows
        got = got[..., : want.shape[-1]]
    torch.testing.assert_close(got, want)
    model.save_pretrained(tmp_path)
    again = auto_class(name).from_pretrained(tmp_path)
    torch.testing.assert_close(
        result(again(torch.full_like(ids, size - 1))), result(model(torch.full_like(ids, size - 1)))
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("name", ["HyenaForCausalLM", "HyenaDNAForCausalLM", "HyenaForMaskedLM"])
def test_dtypes(name: str, dtype: torch.dtype, tmp_path: Path):
    """Filters keep float32 weights at least, however a model comes by its dtype."""
    model = build(name, torch.float32)
    model.save_pretrained(tmp_path)
    kind, ids = auto_class(name), tokens(name)
    with torch.no_grad():
        want = model(ids).logits.double()
    made = [kind.from_pretrained(tmp_path, dtype=dtype), kind.from_pretrained(tmp_path).to(dtype)]
    made.append(kind.from_pretrained(tmp_path, dtype=str(dtype).removeprefix("torch.")))
    for each in made:
        for key, p in each.named_parameters():
            assert p.dtype == (torch.promote_types(dtype, torch.float32) if ".filter." in key else dtype), key
        with torch.no_grad():
            got = each(ids).logits
        assert got.dtype == dtype
        worst = (got.double() - want).abs().max() / want.abs().max()
        assert worst < {torch.bfloat16: 0.05, torch.float16: 0.01, torch.float64: 1e-3}[dtype]
    small = kind.from_config(config(name), dtype=dtype)
    assert small.get_input_embeddings().weight.dtype == dtype


@pytest.mark.parametrize("name", NAMES[1::5])
def test_devices(name: str, tmp_path: Path):
    pytest.importorskip("accelerate")
    model, ids = build(name, torch.float32), tokens(name)
    model.save_pretrained(tmp_path / "model")
    with torch.no_grad():
        want = result(model(ids))
        for devices in ("cpu", {"": "cpu"}, "auto"):
            again = auto_class(name).from_pretrained(tmp_path / "model", device_map=devices)
            assert torch.equal(result(again(ids)), want)


@pytest.mark.parametrize("name", ["HyenaForCausalLM", "HyenaForMaskedLM", "HyenaForSequenceClassification"])
def test_layers_on_disk(name: str, tmp_path: Path):
    pytest.importorskip("accelerate")
    model, ids = build(name), tokens(name)
    model.save_pretrained(tmp_path / "model")
    places = {key: "cpu" for key, _ in model.named_children()} | {"model.blocks.1": "disk"}
    places = {key: place for key, place in places.items() if key != "model"}
    places |= {f"model.{part}": "cpu" for part in ("embedding", "dropout", "blocks.0", "norm")}
    again = auto_class(name).from_pretrained(tmp_path / "model", device_map=places, offload_folder=tmp_path / "off")
    assert any(p.is_meta for p in again.model.blocks[1].parameters())
    with torch.no_grad():
        # Modules that fetch their weights are called one by one.
        torch.testing.assert_close(result(again(ids)), result(model(ids)), **EXACT)


@pytest.mark.parametrize("name", NAMES)
def test_what_a_checkpoint_lacks_is_initialised(name: str, tmp_path: Path):
    """Everything, and nothing of it is left as memory was."""
    kind, c = type(build(name)), config(name)
    if "DNA" in name:
        fresh = kind.from_pretrained(None, config=c, state_dict={})
    else:
        (tmp_path / "model").mkdir()
        fresh = kind.from_pretrained(None, config=c, state_dict={})
    plain = kind(c)
    for (key, p), q in zip(fresh.state_dict().items(), plain.state_dict().values(), strict=True):
        assert p.isfinite().all(), key
        if q.numel() > 200 and q.is_floating_point():
            # What is scaled by other weights' draws differs more from model to model.
            far = 0.6 if key.endswith(".filter.ffn.out.weight") else 0.4
            assert p.std().item() == pytest.approx(q.std().item(), rel=far), key
        elif q.numel() and q.eq(q.flatten()[0]).all():
            torch.testing.assert_close(p, q)


def test_a_new_head_on_old_weights(tmp_path: Path):
    model = build("HyenaForCausalLM", torch.float32)
    model.save_pretrained(tmp_path)
    kind = transformers.AutoModelForSequenceClassification
    again, found = kind.from_pretrained(tmp_path, num_labels=5, output_loading_info=True)
    assert found["missing_keys"] == {"score.weight", "score.bias"}
    assert again.score.weight.shape == (5, 16)
    assert again.score.bias.eq(0).all()
    assert torch.equal(again.model(tokens()).last_hidden_state, model.model(tokens()).last_hidden_state)
    with pytest.raises((ValueError, RuntimeError), match=r"mismatch|size|holds a part of"):
        transformers.AutoModelForMaskedLM.from_pretrained(tmp_path, config=config("HyenaForMaskedLM", d_model=8))


def test_rows_that_do_not_fit():
    model, ids = build(), tokens()
    with pytest.raises(ValueError, match=r"0 positions and 65 more are longer than l_max=64"):
        model(torch.full((1, 65), 3))
    with pytest.raises(ValueError, match=r"attention_mask must be \(3, 12\).*got \(3, 1, 12, 12\)"):
        model(ids, attention_mask=torch.ones(3, 1, L, L))
    with pytest.raises(ValueError, match="an integer mask holds 1"):
        model(ids, attention_mask=torch.full_like(ids, 2))
    for wrong in (0.5, torch.finfo(torch.float32).min, float("nan")):
        added = torch.zeros(ids.shape)
        added[0, 0] = wrong
        with pytest.raises(ValueError, match=r"a floating point mask holds 1 where .* added to scores"):
            model(ids, attention_mask=added)
    assert torch.equal(model(ids, attention_mask=torch.ones(ids.shape)).logits, model(ids).logits)
    with pytest.raises(ValueError, match=r"expected input_ids \(B, L\)"):
        model(ids[0])
    with pytest.raises(ValueError, match="use_cache=True: a two-sided model"):
        build("HyenaForMaskedLM").model(ids, use_cache=True)
