"""replace_attention in transformers' models: sizes, padding, causality, and what cannot be replaced."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable

import pytest
import torch
import transformers
from torch import Tensor

from helpers.attention_models import (
    EXACT,
    LANGUAGE_MODELS,
    LAYERS,
    SIZES,
    D,
    L,
    bert,
    bert_decoder,
    gpt2,
    operators,
    padding,
    tokens,
    vit,
)
from hyena.integrations.adapters.transformers import PaddingHook, TransformersAdapter
from hyena.integrations.replace import replace_attention


@pytest.mark.parametrize("make", LANGUAGE_MODELS)
def test_sizes_and_directions_come_from_the_config(make: Callable):
    model = make().train()
    before = copy.deepcopy(model.config.to_dict())
    report = replace_attention(model)
    assert len(report) == LAYERS
    assert not report.kept
    for op in operators(model):
        assert (op.l_max, op.causal, op.d_model, op.training) == (32, make is not bert, D, True)
        assert op.in_proj.weight.dtype == torch.float64
    assert model.config.to_dict() == before  # models that share it are not touched
    assert {p.dtype for p in model.parameters()} == {torch.float64}
    changed = make()
    replace_attention(changed, l_max=50, causal=False, order=3)
    assert all((op.l_max, op.causal, op.order) == (50, False, 3) for op in operators(changed))


@pytest.mark.parametrize("impl", ["sdpa", "eager"])
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("carried", ["by the hook", "in the model's own masks"])
@pytest.mark.parametrize("make", LANGUAGE_MODELS)
def test_padded_rows_give_what_they_give_alone(make: Callable, carried: str, side: str, impl: str):
    model = make(impl)
    replace_attention(model)
    base = model.base_model
    assert [type(hook) for hook in base._forward_pre_hooks.values()] == [PaddingHook]
    if carried == "in the model's own masks":
        base._forward_pre_hooks.clear()
    mask, positions = padding(side)
    x = model.get_input_embeddings()(tokens()).detach()

    def run(x: Tensor, **kwargs) -> tuple[Tensor, Tensor]:
        x = x.clone().requires_grad_()
        logits = model(inputs_embeds=x, **kwargs).logits
        keep = kwargs.get("attention_mask", torch.ones(x.shape[:2])).bool()
        return logits, torch.autograd.grad(logits[keep].square().sum(), x)[0]

    logits, gradient = run(x, attention_mask=mask, position_ids=positions)
    for i, n in enumerate(SIZES):
        rows = slice(None, n) if side == "right" else slice(L - n, None)
        want, want_gradient = run(x[i : i + 1, rows])
        torch.testing.assert_close(logits[i, rows], want[0], **EXACT)
        torch.testing.assert_close(gradient[i, rows], want_gradient[0], **EXACT)
        one, _ = run(x[i : i + 1], attention_mask=mask[i : i + 1], position_ids=positions[i : i + 1])
        torch.testing.assert_close(one[0, rows], want[0], **EXACT)


@pytest.mark.parametrize("make", [gpt2, bert_decoder])
def test_causal_models_stay_causal(make: Callable):
    model, x = make(), tokens()
    replace_attention(model)
    later = torch.cat([x[:, :7], tokens(1)[:, 7:]], dim=1)
    torch.testing.assert_close(model(later).logits[:, :7], model(x).logits[:, :7], **EXACT)
    assert (model(later).logits[:, 7:] - model(x).logits[:, 7:]).abs().max() > 1e-3


def test_bert_has_no_second_output_projection():
    model = bert()
    attention = model.bert.encoder.layer[0].attention
    count = sum(p.numel() for p in attention.parameters())
    replace_attention(model)
    op = operators(model)[0]
    assert not list(op.out_proj.parameters())
    rest = [op.short.weight, op.short.bias, op.conv.bias, *op.conv.filter.parameters()]
    assert sum(p.numel() for p in attention.parameters()) == count + sum(p.numel() for p in rest)
    op.reset_parameters()
    wide = bert()
    replace_attention(wide, inner_factor=2)
    assert operators(wide)[0].out_proj.weight.shape == (D, 2 * D)
    assert wide(tokens()).logits.isfinite().all()


def test_layers_get_padding_as_rows_and_not_as_squares():
    model, shapes = gpt2("eager"), []
    replace_attention(model)
    for block in model.transformer.h:
        block.attn.register_forward_pre_hook(
            lambda m, args, kwargs: shapes.append(kwargs["attention_mask"].shape), with_kwargs=True
        )
    mask, _ = padding("right")
    want = model(tokens(), attention_mask=mask).logits
    assert set(shapes) == {(3, 1, 1, L)}
    position = list(inspect.signature(model.transformer.forward).parameters).index("attention_mask")
    args = [tokens(), *[None] * (position - 1), mask]
    hidden = model.transformer(*args).last_hidden_state
    torch.testing.assert_close(model.lm_head(hidden), want, **EXACT)


def test_vit():
    model = vit()
    report = replace_attention(model)
    assert [entry.l_max for entry in report.replaced] == [10, 10]
    pixels = torch.randn(2, 3, 12, 12)
    loss = model(pixels, labels=torch.tensor([0, 1])).loss
    loss.backward()
    assert all(p.grad is not None for p in model.parameters())
    model.eval()
    with torch.no_grad():
        x = torch.randn(2, 10, D)
        attention = model.get_submodule(report.replaced[0].name)  # releases differ in where that is
        y = attention(x)[0]
        x[:, -1] += 1
        assert (attention(x)[0] - y)[:, 0].abs().max() > 1e-6  # two-sided
    wide = vit(image_size=(8, 16), patch_size=(4, 2))
    assert replace_attention(wide).replaced[0].l_max == 17
    assert wide(torch.randn(1, 3, 8, 16)).logits.isfinite().all()


@pytest.mark.parametrize("impl", ["sdpa", "eager"])
def test_what_attention_can_and_hyena_cannot_raises(impl: str):
    model = gpt2(impl)
    replace_attention(model)
    two_rows = torch.tensor([[0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 5, 6]])
    with pytest.raises(ValueError, match="packed rows"):
        model(tokens(), position_ids=two_rows, use_cache=False)
    window = torch.ones(L, L, dtype=torch.bool).tril().triu(-3).expand(3, 1, L, L)
    with pytest.raises(ValueError, match=r"\(3, 1, 12, 12\)"):
        model(tokens(), attention_mask=window)
    with pytest.raises(ValueError, match=r"\(3, 1, 1, 11\) does not fit"):
        model(tokens(), attention_mask=torch.ones(3, 11))
    with pytest.raises(ValueError, match="to_matrix"):
        model(tokens(), output_attentions=True)
    biased = torch.zeros(3, 1, 1, L).index_fill(3, torch.tensor([2]), -1.0)
    with pytest.raises(ValueError, match="more than padding"):
        model(tokens(), attention_mask=biased)
    layer = model.transformer.h[0].attn
    with pytest.raises(ValueError, match="cu_seq_lens_q"):
        layer(torch.randn(1, L, D).double(), cu_seq_lens_q=torch.tensor([0, L]))
    with pytest.raises(ValueError, match="cross-attention"):
        layer(torch.randn(1, L, D).double(), encoder_hidden_states=torch.randn(1, L, D).double())
    with pytest.raises(ValueError, match="attn_implementation"):
        layer(torch.randn(1, L, D).double(), attention_mask="BlockMask")


def test_a_model_that_keeps_some_attention():
    model = gpt2()
    replace_attention(model, where=lambda name, module: ".0." in name)
    assert not model.transformer._forward_pre_hooks  # the attention that stays needs the model's own masks
    mask, positions = padding("left")
    out = model(tokens(), attention_mask=mask, position_ids=positions).logits
    for i, n in enumerate(SIZES):
        torch.testing.assert_close(out[i, L - n :], model(tokens()[i : i + 1, L - n :]).logits[0], **EXACT)
    settings = {"attention_mask": mask, "max_new_tokens": 4, "do_sample": False, "pad_token_id": 2}
    assert torch.equal(
        model.generate(tokens(), use_cache=True, **settings), model.generate(tokens(), use_cache=False, **settings)
    )
    replace_attention(model)
    assert len(model.transformer._forward_pre_hooks) == 1
    again = model(tokens(), attention_mask=mask, position_ids=positions).logits
    for i, n in enumerate(SIZES):
        torch.testing.assert_close(again[i, L - n :], model(tokens()[i : i + 1, L - n :]).logits[0], **EXACT)


def test_an_encoder_and_a_decoder():
    decoder = bert(cls=transformers.BertLMHeadModel, is_decoder=True, add_cross_attention=True)
    model = transformers.EncoderDecoderModel(encoder=bert(cls=transformers.BertModel), decoder=decoder).eval()
    report = replace_attention(model)
    assert [entry.causal for entry in report.replaced] == [False] * LAYERS + [True] * LAYERS
    assert [entry.kind for entry in report.kept] == ["BertCrossAttention"] * LAYERS
    mask, _ = padding("right")
    out = model(tokens(), attention_mask=mask, decoder_input_ids=tokens(1), decoder_attention_mask=mask).logits
    for i, n in enumerate(SIZES):
        alone = model(tokens()[i : i + 1, :n], decoder_input_ids=tokens(1)[i : i + 1, :n]).logits
        torch.testing.assert_close(out[i, :n], alone[0], **EXACT)
    settings = {"attention_mask": mask, "max_new_tokens": 4, "decoder_start_token_id": 3, "pad_token_id": 2}
    cached = model.generate(tokens(), use_cache=True, eos_token_id=1, **settings)
    assert torch.equal(cached, model.generate(tokens(), use_cache=False, eos_token_id=1, **settings))


def test_gpt2_with_cross_attention():
    model = gpt2(add_cross_attention=True)
    report = replace_attention(model)
    assert [entry.reason for entry in report.kept] == ["cross-attention, between two sequences"] * LAYERS
    other = torch.randn(3, 5, D).double()
    mask, _ = padding("right")
    out = model(tokens(), attention_mask=mask, encoder_hidden_states=other).logits
    for i, n in enumerate(SIZES):
        alone = model(tokens()[i : i + 1, :n], encoder_hidden_states=other[i : i + 1]).logits
        torch.testing.assert_close(out[i, :n], alone[0], **EXACT)


def test_a_row_that_is_all_padding_harms_nobody():
    model, (mask, _) = gpt2(), padding("right")
    replace_attention(model)
    want = model(tokens(), attention_mask=mask).logits
    mask[2] = 0
    out = model(tokens(), attention_mask=mask).logits
    assert out.isfinite().all()
    torch.testing.assert_close(out[:2], want[:2], **EXACT)
    assert isinstance(model.transformer.h[0].attn, TransformersAdapter)


def test_t5_does_not_lose_the_positions_that_its_first_layer_computes():
    config = transformers.T5Config(vocab_size=20, d_model=D, d_kv=4, d_ff=2 * D, num_layers=2, num_heads=4)
    model = transformers.T5ForConditionalGeneration(config)
    with pytest.raises(ValueError, match=r"encoder.block.0.*relative positions for encoder.block.1.*keep its first"):
        replace_attention(model, l_max=L, where=lambda name, module: not name.startswith("encoder.block.1"))
    report = replace_attention(model, l_max=L, where=lambda name, module: "block.0" not in name)
    assert len(report) == 2
