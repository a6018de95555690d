"""``generate`` of the models for Auto classes: from states in transformers' caches, and the same without a cache."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import pytest
import torch
from transformers import DynamicCache
from transformers.modeling_outputs import CausalLMOutputWithPast

from helpers.auto_models import L, build, tokens
from hyena.integrations.auto.base import CACHES, cache_of

NAMES = ["HyenaForCausalLM", "HyenaDNAForCausalLM"]
EXACT = {"rtol": 1e-8, "atol": 1e-8}


def settings(model: Any, **changes: Any) -> dict[str, Any]:
    fixed = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None, "pad_token_id": model.config.pad_token_id}
    return fixed | changes


def left_padded(name: str) -> tuple[torch.Tensor, torch.Tensor]:
    ids = tokens(name)
    mask = torch.ones_like(ids)
    mask[0, :5], mask[2, :11] = 0, 0
    return ids, mask


@pytest.mark.parametrize(
    "how",
    [
        {},
        {"do_sample": True, "top_k": 5},
        {"num_beams": 3},
        {"num_beams": 4, "num_return_sequences": 2, "do_sample": True},
        {"prefill_chunk_size": 5},
        {"repetition_penalty": 1.3},
        {"max_new_tokens": 1},
    ],
    ids=lambda how: "-".join(how) or "greedy",
)
@pytest.mark.parametrize("name", NAMES)
def test_with_and_without_a_cache(name: str, how: dict[str, Any]):
    model = build(name)
    ids, mask = left_padded(name)
    texts = []
    for use_cache in (True, False):
        torch.manual_seed(0)
        given = {key: value for key, value in how.items() if use_cache or key != "prefill_chunk_size"}
        if "prefill_chunk_size" in given:  # the first releases make no cache for it
            given[cache_name()] = DynamicCache()
        texts.append(model.generate(ids, attention_mask=mask, use_cache=use_cache, **settings(model, **given)))
    assert torch.equal(*texts)
    assert texts[0].shape[1] == L + how.get("max_new_tokens", 6)


@pytest.mark.parametrize("name", NAMES)
def test_as_the_rows_alone(name: str):
    model = build(name)
    ids, mask = left_padded(name)
    together = model.generate(ids, attention_mask=mask, **settings(model))
    for i in range(3):
        alone = model.generate(ids[i : i + 1, mask[i].bool()], **settings(model))
        assert torch.equal(alone[0, -6:], together[i, -6:])


def test_as_the_library_generates():
    model = build()
    ids = tokens()
    want = torch.stack(model.to_hyena().generate(ids, 6, temperature=0))
    assert torch.equal(model.generate(ids, **settings(model)), want)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.filterwarnings("ignore:`past_key_values`")
def test_in_pieces(name: str):
    """By hand, with the cache by either of its names, with the default use_cache and with gradients."""
    model = build(name)
    ids, mask = left_padded(name)
    want = model(ids, attention_mask=mask).logits
    for key in CACHES:
        for use_cache in (None, True):
            for grad in (False, True):
                cache, found = None, []
                with torch.set_grad_enabled(grad):
                    for start, stop in ((0, 5), (5, 6), (6, 10), (10, 12)):
                        out = model(
                            ids[:, start:stop], attention_mask=mask[:, :stop], use_cache=use_cache, **{key: cache}
                        )
                        cache = cache_of(out)
                        found.append(out.logits)
                got = torch.cat(found, dim=1)
                torch.testing.assert_close(got[mask.bool()], want[mask.bool()], **EXACT)
                assert cache.get_seq_length() == L
    with pytest.raises(ValueError, match="pass one cache"):
        model(ids, past_key_values=cache, cache=cache)


def cache_name() -> str:
    names = {field.name for field in dataclasses.fields(CausalLMOutputWithPast)}
    return "cache" if "cache" in names else "past_key_values"


def test_a_step_costs_a_step():
    model = build()
    seen: list[int] = []
    for layer in model.model.blocks:
        layer.mixer.register_forward_pre_hook(lambda mixer, args: seen.append(args[0].size(1)))
    model.generate(tokens(), **settings(model))
    assert seen == [L] * 2 + [1] * 10


def test_a_forward_that_nothing_follows_makes_no_state():
    """By default a cache comes back, and the outputs are those of a forward without one, to the bit."""
    model = build("HyenaForCausalLM", torch.float32)
    ids = tokens()
    with torch.no_grad():
        out = model(ids)
        assert torch.equal(out.logits, model(ids, use_cache=False).logits)
        assert all(layer._state is None for layer in cache_of(out).layers)
        assert cache_of(model(ids, use_cache=False)) is None
        more = model(ids[:, :1], **{cache_name(): cache_of(out)}).logits
        torch.testing.assert_close(more[:, 0], model(torch.cat([ids, ids[:, :1]], 1)).logits[:, -1])
    model.train()
    assert cache_of(model(ids)) is None


@pytest.mark.parametrize("draft", ["model", "lookup"])
def test_drafts(draft: str):
    model = build()
    ids = tokens(rows=1)
    how = settings(model, max_new_tokens=20, eos_token_id=1)
    want = model.generate(ids, **how)
    drafts = {"assistant_model": build(num_layers=1)} if draft == "model" else {"prompt_lookup_num_tokens": 3}
    assert want.shape[1] == L + 20
    # The first releases write one token more with looked-up drafts, from any model.
    assert torch.equal(model.generate(ids, **how, **drafts)[:, : L + 20], want)


@pytest.mark.parametrize("name", NAMES)
def test_going_on(name: str):
    model = build(name)
    ids = tokens(name)
    first = model.generate(ids, return_dict_in_generate=True, **settings(model))
    cache = getattr(first, cache_name())
    kept = copy.deepcopy(cache)
    text = torch.cat([first.sequences, ids[:, :3]], dim=1)
    how = settings(model, attention_mask=torch.ones_like(text))
    want = model.generate(text, use_cache=False, **how)
    assert torch.equal(model.generate(text, **{cache_name(): cache}, **how), want)
    assert torch.equal(model.generate(text, **{cache_name(): kept}, **how), want)


def test_from_embeddings():
    model = build()
    ids = tokens()
    want = model.generate(ids, **settings(model))[:, L:]
    embedded = model.get_input_embeddings()(ids)
    assert torch.equal(model.generate(inputs_embeds=embedded, **settings(model)), want)


def test_only_what_is_a_token():
    """The output layer of HyenaDNA is wider than its vocabulary."""
    model = build("HyenaDNAForCausalLM")
    with torch.no_grad():
        model.get_output_embeddings().weight[12:] = 50.0
    ids = tokens("HyenaDNAForCausalLM")
    for how in ({}, {"do_sample": True}, {"num_beams": 2}):
        assert model.generate(ids, **settings(model, **how)).max() < 12


def test_what_cannot_be():
    model = build()
    ids = tokens()
    with pytest.raises(ValueError, match=r"64 positions and 1 more are longer than l_max=64"):
        model.generate(ids, **settings(model, max_new_tokens=60))
    with pytest.raises(ValueError, match="has no place for Hyena's state"):
        model.generate(ids, cache_implementation="static", **settings(model))
    masked = build("HyenaForMaskedLM")
    assert not masked.can_generate()


def test_compiled():
    model = build("HyenaForCausalLM", torch.float32)
    ids, mask = left_padded("HyenaForCausalLM")
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    with torch.no_grad():
        want = model(ids, attention_mask=mask, use_cache=False).logits
        torch.testing.assert_close(compiled(ids, attention_mask=mask, use_cache=False).logits, want)
