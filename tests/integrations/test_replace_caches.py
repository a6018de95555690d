"""Models of transformers with Hyena in attention's place: decoding from states in caches."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable

import pytest
import torch
import transformers
from torch import Tensor, nn

from helpers.attention_models import EXACT, D, L, bert_decoder, gpt2, operators, padding, tokens
from hyena.filters import HyenaFilter
from hyena.integrations.replace import replace_attention

# What a cache is called has changed between releases of transformers.
CACHE = "cache" if "cache" in inspect.signature(transformers.GPT2LMHeadModel.forward).parameters else "past_key_values"
SETTINGS = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 2, "eos_token_id": 1}


def hyena_gpt2(**kwargs) -> nn.Module:
    torch.manual_seed(0)
    model = gpt2(**kwargs)
    replace_attention(model)
    return model


def count_steps(model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Positions of every call of a mixer, at once or as a step."""
    seen: list[int] = []
    kind = type(operators(model)[0])
    forward = kind.forward
    monkeypatch.setattr(kind, "forward", lambda op, u, *a, **k: seen.append(u.size(1)) or forward(op, u, *a, **k))
    return seen


@pytest.mark.parametrize("make", [gpt2, bert_decoder])
def test_in_pieces_and_with_padding(make: Callable):
    model = make()
    replace_attention(model)
    mask, positions = padding("left")
    whole = model(tokens(), attention_mask=mask, position_ids=positions).logits
    plain = model(tokens(), use_cache=False).logits
    for grad in (True, False):
        cache, bare, got, got_plain = None, None, [], []
        with torch.set_grad_enabled(grad):
            for start, stop in ((0, 5), (5, 6), (6, 10), (10, 12)):
                part = tokens()[:, start:stop]
                given = {"attention_mask": mask[:, :stop], "position_ids": positions[:, start:stop], CACHE: cache}
                out = model(part, use_cache=True, **given)
                cache = getattr(out, CACHE)
                got.append(out.logits)
                out = model(part, use_cache=True, **{CACHE: bare})
                bare = getattr(out, CACHE)
                got_plain.append(out.logits)
        torch.testing.assert_close(torch.cat(got, dim=1)[mask.bool()], whole[mask.bool()], **EXACT)
        torch.testing.assert_close(torch.cat(got_plain, dim=1), plain, **EXACT)


def test_a_token_is_a_step(monkeypatch: pytest.MonkeyPatch):
    model = hyena_gpt2(n_positions=300)
    seen = count_steps(model, monkeypatch)
    model.generate(tokens(), **SETTINGS | {"max_new_tokens": 200, "eos_token_id": None})
    layers = len(operators(model))
    assert seen[:layers] == [L] * layers
    # Steps, and a state made again where the first had no more room.
    assert sorted(set(seen[layers:])) == [1, 128]
    assert seen.count(128) == layers


def test_states_that_are_outgrown():
    model = hyena_gpt2(n_positions=300)
    mask = padding("left")[0]
    settings = SETTINGS | {"max_new_tokens": 180, "attention_mask": mask, "eos_token_id": None}
    want = model.generate(tokens(), use_cache=False, **settings)
    assert torch.equal(model.generate(tokens(), **settings), want)
    short = gpt2()
    replace_attention(short, l_max=14)
    with pytest.raises(ValueError, match=r"14 positions and 1 more are longer than this layer's l_max=14"):
        short.generate(tokens(), **SETTINGS | {"eos_token_id": None})


def test_gradients_flow_through_a_cache():
    model = hyena_gpt2()
    x = model.get_input_embeddings()(tokens()).detach().requires_grad_()
    want = torch.autograd.grad(model(inputs_embeds=x, use_cache=False).logits[:, 8:].square().sum(), x)[0]
    first = model(inputs_embeds=x[:, :8], use_cache=True)
    second = model(inputs_embeds=x[:, 8:], **{CACHE: getattr(first, CACHE)})
    got = torch.autograd.grad(second.logits.square().sum(), x)[0]
    torch.testing.assert_close(got, want, **EXACT)
    with torch.no_grad():  # and from there on without
        third = model(tokens()[:, :1], **{CACHE: getattr(second, CACHE)})
        plain = model(torch.cat([tokens(), tokens()[:, :1]], dim=1), use_cache=False)
    torch.testing.assert_close(third.logits[:, 0], plain.logits[:, -1], **EXACT)


@pytest.mark.parametrize("inference", [True, False])
def test_several_turns(inference: bool):
    model = hyena_gpt2(n_positions=64)
    cache = transformers.DynamicCache(config=model.config)
    text = tokens()
    for turn in range(3):
        text = torch.cat([text, tokens(turn + 1)[:, :4]], dim=1)
        want = model.generate(text, use_cache=False, **SETTINGS)
        with torch.inference_mode(inference and turn != 1):
            got = model.generate(text.clone(), **SETTINGS, **{CACHE: cache})
        assert torch.equal(got, want)
        text = got.clone()
    twin = copy.deepcopy(cache)
    more = torch.cat([text, tokens()[:, :2]], dim=1)
    want = model.generate(more, use_cache=False, **SETTINGS)
    for each in (twin, cache):
        assert torch.equal(model.generate(more, **SETTINGS, **{CACHE: each}), want)


@pytest.mark.parametrize("sampled", [False, True])
def test_assisted_by_a_model(sampled: bool, monkeypatch: pytest.MonkeyPatch):
    model, assistant = hyena_gpt2(n_positions=300), hyena_gpt2(n_layer=1, n_positions=300)
    assistant.transformer.wte.load_state_dict(model.transformer.wte.state_dict())
    settings = {"max_new_tokens": 24, "do_sample": sampled, "pad_token_id": 2, "suppress_tokens": [1]}
    prompt = torch.cat([tokens()[:1]] * 12, dim=1)
    want = model.generate(prompt, use_cache=False, **settings | {"do_sample": False})
    seen = count_steps(model, monkeypatch)
    torch.manual_seed(0)
    got = model.generate(prompt, assistant_model=assistant, **settings)
    # The prompt, and once more after the first crop; from then on it goes on from a state.
    assert sum(n > 60 for n in seen) <= 2 * 3
    if not sampled:
        assert torch.equal(got, want)


def test_assisted_by_the_prompt():
    model = hyena_gpt2(n_positions=300)
    prompt = torch.cat([tokens()[:1]] * 3, dim=1)
    want = model.generate(prompt, use_cache=False, max_new_tokens=30, do_sample=False, pad_token_id=2)
    got = model.generate(prompt, prompt_lookup_num_tokens=3, max_new_tokens=30, do_sample=False, pad_token_id=2)
    assert torch.equal(got, want)


def test_prefill_in_chunks():
    model = hyena_gpt2()
    want = model.generate(tokens(), use_cache=False, **SETTINGS)
    cache = {CACHE: transformers.DynamicCache()}
    assert torch.equal(model.generate(tokens(), prefill_chunk_size=5, **SETTINGS, **cache), want)


@pytest.mark.parametrize("padded", [False, True])
def test_what_caches_do_with_rows(padded: bool):
    model = hyena_gpt2()
    mask = padding("left")[0] if padded else torch.ones(3, L, dtype=torch.long)

    def start() -> object:
        with torch.no_grad():
            out = model(tokens()[:, :9], attention_mask=mask[:, :9], use_cache=True)
            out = model(tokens()[:, 9:10], attention_mask=mask[:, :10], use_cache=True, **{CACHE: getattr(out, CACHE)})
        return getattr(out, CACHE)

    def check(cache: object, rows: Tensor, seen: int = 10) -> None:
        with torch.no_grad():
            got = model(tokens()[rows, seen:], attention_mask=mask[rows], **{CACHE: cache}).logits
            want = model(tokens()[rows], attention_mask=mask[rows], use_cache=False).logits[:, seen:]
        # Positions are those of the model that gets no position_ids: from 0 on, padding included.
        torch.testing.assert_close(got, want, **EXACT)

    cache = start()
    assert cache.get_seq_length() == 10
    assert cache.layers[0].get_mask_sizes(3 if CACHE == "cache" else torch.arange(3)) == (13, 0)
    cache.reorder_cache(torch.tensor([2, 0, 0]))
    check(cache, torch.tensor([2, 0, 0]))
    cache = start()
    cache.batch_repeat_interleave(2)
    check(cache, torch.tensor([0, 0, 1, 1, 2, 2]))
    cache = start()
    cache.batch_select_indices(torch.tensor([True, False, True]))
    check(cache, torch.tensor([0, 2]))
    cache = start()
    cache.batch_select_indices(torch.tensor([1]))
    check(cache, torch.tensor([1]))
    for seen in (9, 7, 1):
        cache = start()
        cache.crop(seen - 10)
        assert cache.get_seq_length() == seen
        check(cache, torch.arange(3), seen)
        cache.crop(-1)
        check(cache, torch.arange(3), L - 1)
    cache = start()
    cache.crop(0 if CACHE == "cache" else 10)
    check(cache, torch.arange(3))
    with pytest.raises(ValueError, match="cannot be forgotten of 12"):
        cache.layers[0].crop(-13)
    cache.reset()
    assert cache.get_seq_length() == 0
    check(cache, torch.arange(3), 0)


def test_copies_of_a_cache_go_their_own_ways():
    model = hyena_gpt2()
    with torch.no_grad():
        cache = getattr(model(tokens()[:, :8], use_cache=True), CACHE)
        twin = copy.deepcopy(cache)
        model(tokens(1)[:, :3], **{CACHE: twin})
        got = model(tokens()[:, 8:], **{CACHE: cache}).logits
    torch.testing.assert_close(got, model(tokens(), use_cache=False).logits[:, 8:], **EXACT)


def test_a_cache_that_cannot_serve_raises():
    model = hyena_gpt2()
    for kind in ("static", "offloaded"):
        with pytest.raises(ValueError, match="DynamicCache"):
            model.generate(tokens(), max_new_tokens=2, cache_implementation=kind, pad_token_id=2)
    with pytest.raises(ValueError, match="DynamicCache"):
        model(tokens(), **{CACHE: transformers.StaticCache(model.config, 30)})
    two_sided = gpt2()
    replace_attention(two_sided, causal=False)
    cache = getattr(two_sided(tokens()), CACHE)
    with pytest.raises(ValueError, match="12 positions are cached"):
        two_sided(tokens()[:, :1], **{CACHE: cache})
    attention = gpt2()
    cache = getattr(attention(tokens(), use_cache=True), CACHE)
    with pytest.raises(ValueError, match="made by attention"):
        model(tokens()[:, :1], **{CACHE: cache})
    cache = getattr(model(tokens(), use_cache=True), CACHE)
    with pytest.raises(ValueError, match="serves one model"):
        attention(tokens()[:, :1], **{CACHE: cache})
    with pytest.raises(ValueError, match="holds 3 rows, and 2 go on"):
        model(tokens()[:2, :1], **{CACHE: cache})


def test_an_operator_that_cannot_step_raises_when_it_has_to():
    model = gpt2()
    own = HyenaFilter(D, 32, 1).double()
    own.depends_on_length = True  # says that its taps may change with the length
    replace_attention(model, filter=own)
    with torch.no_grad():
        out = model(tokens(), use_cache=True)
        torch.testing.assert_close(out.logits, model(tokens(), use_cache=False).logits, **EXACT)
        with pytest.raises(ValueError, match="depend on the length"):
            model(tokens()[:, :2], **{CACHE: getattr(out, CACHE)})
        with pytest.raises(ValueError, match="depend on the length"):  # also the second time
            model(tokens()[:, :2], **{CACHE: getattr(out, CACHE)})


@pytest.mark.parametrize("grad", [True, False])
def test_padding_that_changes_between_calls_raises(grad: bool):
    model, mask = hyena_gpt2(), padding("left")[0]
    with torch.set_grad_enabled(grad):
        cache = getattr(model(tokens()[:, :8], attention_mask=mask[:, :8], use_cache=True), CACHE)
        for other in (None, torch.ones(3, 9, dtype=torch.long)):
            with pytest.raises(ValueError, match="the mask of the 8 cached positions differs"):
                model(tokens()[:, 8:9], attention_mask=other, **{CACHE: cache})
        model(tokens()[:, 8:9], attention_mask=mask[:, :9], **{CACHE: cache})
        cache = getattr(model(tokens()[:, :8], use_cache=True), CACHE)
        model(tokens()[:, 8:9], attention_mask=torch.ones(3, 9, dtype=torch.long), **{CACHE: cache})
        with pytest.raises(ValueError, match="the mask of the 9 cached positions differs"):
            model(tokens()[:, 9:10], attention_mask=mask[:, :10], **{CACHE: cache})


def test_layers_of_both_kinds_share_a_cache():
    model = gpt2(n_layer=3)
    replace_attention(model, where=lambda name, module: ".1." in name)
    mask = padding("left")[0]
    for way in ({}, {"num_beams": 3}):
        settings = SETTINGS | {"attention_mask": mask} | way
        want = model.generate(tokens(), use_cache=False, **settings)
        assert torch.equal(model.generate(tokens(), **settings), want)


class Window:
    """A cache that is none of transformers'."""

    def get_seq_length(self, layer: int) -> int:
        return 0


def test_what_is_no_cache_raises():
    layer = hyena_gpt2().transformer.h[0].attn
    for keyword in ("cache", "past_key_values", "past_key_value", "layer_past"):
        with pytest.raises(ValueError, match="a Window is no cache"):
            layer(torch.randn(3, L, D).double(), **{keyword: Window()})
    layer.layer_idx = None
    with pytest.raises(ValueError, match="use_cache=False"):
        layer(torch.randn(3, L, D).double(), past_key_values=Window())


@pytest.mark.parametrize("value", [1, None, False])
def test_what_is_not_known_raises(value: int | None):
    layer, x = hyena_gpt2().transformer.h[0].attn, torch.randn(3, L, D).double()
    with pytest.raises(TypeError, match="'nonsense'"):
        layer(x, nonsense=value)
    with pytest.raises(TypeError, match="at most"):
        layer(x, *[None] * 20)
    with pytest.raises(TypeError, match="two values for hidden_states"):
        layer(x, hidden_states=x)
    with pytest.raises(TypeError, match="missing argument"):
        layer()
    want = layer(x)[0]
    unused = {"position_embeddings": (x, x), "position_ids": x, "cache_position": x, "use_cache": True}
    assert torch.equal(layer(x, **unused)[0], want)
