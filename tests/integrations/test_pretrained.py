"""Replaced models of transformers that are saved and loaded, by every way that loads them."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
import transformers
from torch import Tensor, nn

from helpers.attention_models import EXACT, operators
from helpers.transformers_models import KINDS, tokens
from hyena.filters import HyenaFilter
from hyena.integrations import load_pretrained, replace_attention


def make(name: str = "gpt2", **options) -> nn.Module:
    model = KINDS[name].make()
    replace_attention(model, **KINDS[name].options | options)
    return model


@pytest.mark.parametrize("name", KINDS)
def test_saves_and_loads(name: str, tmp_path: Path):
    kind, model = KINDS[name], make(name)
    close = {"rtol": 0, "atol": 1e-5} if name == "t5" else EXACT  # it loads some weights of its own as float32
    model.save_pretrained(tmp_path)
    with torch.no_grad():
        want = kind.run(model, **kind.inputs())
        loaded = load_pretrained(tmp_path)
        assert type(loaded) is type(model)
        assert not loaded.training
        torch.testing.assert_close(kind.run(loaded, **kind.inputs()), want, **close)
    assert [(op.l_max, op.causal) for op in operators(loaded)] == [(op.l_max, op.causal) for op in operators(model)]
    loaded.save_pretrained(tmp_path / "again")
    again = load_pretrained(tmp_path / "again")
    torch.testing.assert_close(kind.run(again, **kind.inputs()), want, **close)
    # The plain class must not start from random attention.
    with pytest.raises((RuntimeError, ValueError), match=r"(?i)mismatch"):
        type(model).from_pretrained(tmp_path)


def test_what_replacement_was_asked_for_comes_back(tmp_path: Path):
    model = KINDS["gpt2"].make()
    options = {"order": 3, "filter_groups": 4, "value_filter": True}
    replace_attention(model, l_max=33, where=lambda name, module: ".0." in name, **options)
    replace_attention(model, causal=False, multi_head=True)
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    loaded = load_pretrained(tmp_path)
    first, second = operators(loaded)
    assert (first.l_max, first.causal, first.order, first.value_filter) == (33, True, 3, True)
    assert first.conv.filter.channels == 4
    assert (second.l_max, second.causal, second.num_heads) == (48, False, 4)
    assert torch.equal(loaded(tokens()).logits, model(tokens()).logits)
    settings = {"do_sample": False, "max_new_tokens": 3, "use_cache": False, "pad_token_id": 2}
    assert torch.equal(loaded.generate(tokens(), **settings), model.generate(tokens(), **settings))


def test_half_precision(tmp_path: Path):
    model = make().to(torch.bfloat16)
    model.save_pretrained(tmp_path)
    loaded = load_pretrained(tmp_path)
    for (name, p), q in zip(model.named_parameters(), loaded.parameters(), strict=True):
        assert p.dtype == q.dtype, name
        assert torch.equal(p, q)
    assert torch.equal(loaded(tokens()).logits, model(tokens()).logits)


def test_what_a_checkpoint_cannot_hold_is_asked_for(tmp_path: Path):
    own = HyenaFilter(16, 48, 1, width=8).double()
    model = make(filter=own)
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"filter=HyenaFilter.*pass it in options="):
        load_pretrained(tmp_path)
    loaded = load_pretrained(tmp_path, options={"filter": own})
    assert torch.equal(loaded(tokens()).logits, model(tokens()).logits)


def test_other_folders_raise(tmp_path: Path):
    KINDS["gpt2"].make().save_pretrained(tmp_path / "attention")
    with pytest.raises(ValueError, match="load it with from_pretrained"):
        load_pretrained(tmp_path / "attention")
    with pytest.raises(ValueError, match=r"no config\.json"):
        load_pretrained(tmp_path)
    make().save_pretrained(tmp_path / "hyena")
    with pytest.raises(ValueError, match=r"do not fit|does not have"):
        load_pretrained(tmp_path / "hyena", model_class=transformers.GPT2ForSequenceClassification)


def test_state_dicts_of_replaced_models_fit_each_other():
    model = make()
    before = model.state_dict()
    other = make(l_max=40)
    other.load_state_dict(before)
    assert operators(other)[0].l_max == 40
    old = {k: v for k, v in before.items() if "c_attn" not in k}
    assert len(old) == len(before) - 2
    other.load_state_dict(old)  # as before there were records
    with pytest.raises(RuntimeError, match="c_attn"):
        KINDS["gpt2"].make().load_state_dict(before, strict=False)
    twin = copy.deepcopy(model).half()
    assert twin.transformer.h[0].attn.c_attn.weight.dtype == torch.uint8


class Replaced(transformers.GPT2LMHeadModel):
    """A class that replaces its attention itself."""

    def __init__(self, config: transformers.GPT2Config) -> None:
        super().__init__(config)
        replace_attention(self, order=3)


class ReplacedBefore(transformers.GPT2LMHeadModel):
    """A class that replaces its attention before transformers initialises it."""

    def __init__(self, config: transformers.GPT2Config) -> None:
        super().__init__(config)
        replace_attention(self, order=3)
        self.post_init()


@pytest.mark.parametrize("kind", [Replaced, ReplacedBefore])
def test_a_class_that_replaces_attention_loads_weights_of_attention(
    kind: type, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    attention = KINDS["gpt2"].make().float()
    attention.save_pretrained(tmp_path / "attention")
    empty_like = torch.empty_like

    def poison(*args, **kwargs) -> Tensor:
        t = empty_like(*args, **kwargs)
        if t.is_meta:
            return t
        return t.fill_(torch.nan) if t.is_floating_point() else t.fill_(99)

    monkeypatch.setattr(torch, "empty_like", poison)
    torch.manual_seed(0)
    model = kind.from_pretrained(tmp_path / "attention").eval()
    monkeypatch.undo()
    assert torch.equal(model.transformer.wte.weight, attention.transformer.wte.weight)
    fresh = KINDS["gpt2"].make().float()
    replace_attention(fresh, order=3)
    for (name, got), want in zip(model.named_parameters(), fresh.parameters(), strict=True):
        assert got.isfinite().all(), name
        if "attn" in name and want.numel() > 50 and want.std() > 0:
            assert 0.6 < got.std() / want.std() < 1.7, name
    for (name, got), (other, want) in zip(fresh.named_buffers(), model.named_buffers(), strict=False):
        if name == other and "c_attn" not in name:
            torch.testing.assert_close(got, want, msg=name)
    taps = [op.conv.filter(48).norm(dim=1) for op in operators(model)]
    torch.testing.assert_close(torch.stack(taps), torch.ones_like(torch.stack(taps)), rtol=1e-4, atol=1e-4)
    assert model(tokens()).logits.isfinite().all()
    # and its own weights
    model.save_pretrained(tmp_path / "own")
    again = kind.from_pretrained(tmp_path / "own").eval()
    assert torch.equal(again(tokens()).logits, model(tokens()).logits)
    with pytest.raises((RuntimeError, ValueError), match=r"(?i)mismatch"):
        transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "own")


def test_a_part_of_a_layer_raises(tmp_path: Path):
    model = Replaced(KINDS["gpt2"].make().config)
    state = model.state_dict()
    state.pop("transformer.h.0.attn.operator.out_proj.weight")
    model.save_pretrained(tmp_path, state_dict=state)
    with pytest.raises(ValueError, match=r"a part of a Linear and not .*out_proj\.weight"):
        Replaced.from_pretrained(tmp_path)
