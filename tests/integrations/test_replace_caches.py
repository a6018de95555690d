"""Models of transformers with Hyena in attention's place: generation with caches."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from helpers.attention_models import EXACT, D, L, bert_decoder, gpt2, padding, tokens
from hyena.integrations.replace import replace_attention


@pytest.mark.parametrize("make", [gpt2, bert_decoder])
def test_generation_with_a_cache_is_right(make: Callable):
    model = make()
    replace_attention(model)
    mask, positions = padding("left")
    settings = {"attention_mask": mask, "max_new_tokens": 6, "do_sample": False, "pad_token_id": 2, "eos_token_id": 1}
    want = model.generate(tokens(), use_cache=False, **settings)
    assert torch.equal(model.generate(tokens(), use_cache=True, **settings), want)
    beams = model.generate(tokens(), use_cache=False, num_beams=3, **settings)
    assert torch.equal(model.generate(tokens(), use_cache=True, num_beams=3, **settings), beams)
    # by hand, in chunks, with and without a mask
    whole = model(tokens(), attention_mask=mask, position_ids=positions).logits
    plain = model(tokens(), use_cache=False).logits
    cache, bare, got, got_plain = None, None, [], []
    for start, stop in ((0, 5), (5, 6), (6, 10), (10, 12)):
        part = tokens()[:, start:stop]
        out = model(
            part,
            attention_mask=mask[:, :stop],
            position_ids=positions[:, start:stop],
            past_key_values=cache,
            use_cache=True,
        )
        cache = out.past_key_values
        got.append(out.logits)
        out = model(part, past_key_values=bare, use_cache=True)
        bare = out.past_key_values
        got_plain.append(out.logits)
    torch.testing.assert_close(torch.cat(got, dim=1)[mask.bool()], whole[mask.bool()], **EXACT)
    torch.testing.assert_close(torch.cat(got_plain, dim=1), plain, **EXACT)


def test_a_cache_that_cannot_serve_raises():
    model = gpt2()
    replace_attention(model)
    with pytest.raises(ValueError, match="DynamicCache"):
        model.generate(tokens(), max_new_tokens=2, cache_implementation="static", pad_token_id=2)
    two_sided = gpt2()
    replace_attention(two_sided, causal=False)
    cache = two_sided(tokens()).past_key_values
    with pytest.raises(ValueError, match="12 positions are cached"):
        two_sided(tokens()[:, :1], past_key_values=cache)


class Window:
    """A cache that is none of transformers'."""

    def get_seq_length(self, layer: int) -> int:
        return 0


def test_what_is_no_cache_raises():
    model = gpt2()
    replace_attention(model)
    layer = model.transformer.h[0].attn
    for keyword in ("cache", "past_key_values", "past_key_value", "layer_past"):
        with pytest.raises(ValueError, match="a Window is no cache"):
            layer(torch.randn(3, L, D).double(), **{keyword: Window()})
    layer.layer_idx = None
    with pytest.raises(ValueError, match="use_cache=False"):
        layer(torch.randn(3, L, D).double(), past_key_values=Window())


@pytest.mark.parametrize("value", [1, None, False])
def test_what_is_not_known_raises(value: int | None):
    model = gpt2()
    replace_attention(model)
    layer, x = model.transformer.h[0].attn, torch.randn(3, L, D).double()
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
