"""Models of transformers with Hyena in attention's place: training, copies, compiling, half precision."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from helpers.attention_models import EXACT, LANGUAGE_MODELS, CausalSelfAttention, D, L, bert, gpt2, padding, tokens
from hyena.integrations.replace import replace_attention


@pytest.mark.parametrize("make", LANGUAGE_MODELS)
def test_trains(make: Callable):
    model = make().train()
    replace_attention(model)
    mask, _ = padding("right")
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    losses = []
    for _ in range(8):
        loss = model(tokens(), attention_mask=mask, labels=tokens().masked_fill(mask == 0, -100)).loss
        optimizer.zero_grad()
        loss.backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]


def test_dropout_of_the_output_stays():
    x = torch.randn(3, L, D).double()
    model, other = gpt2(resid_pdrop=0.5), nn.Sequential(CausalSelfAttention()).double()
    replace_attention(model)
    replace_attention(other, l_max=L)
    for layer in (model.transformer.h[0].attn, other[0]):
        dropped = layer.train()(x)
        kept = layer.eval()(x)
        dropped, kept = (t[0] if isinstance(t, tuple) else t for t in (dropped, kept))
        assert 0.05 < (dropped == 0).double().mean() < 0.6
        assert (kept != 0).all()


def test_copies_and_checkpoints():
    model, (mask, _) = gpt2(), padding("right")
    replace_attention(model)
    want = model(tokens(), attention_mask=mask).logits
    fresh = gpt2()
    replace_attention(fresh)
    fresh.load_state_dict(model.state_dict())
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), fresh):
        assert torch.equal(twin(tokens(), attention_mask=mask).logits, want)
        assert len(twin.transformer._forward_pre_hooks) == 1


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is deprecated")
def test_gradient_checkpointing():
    model, (mask, _) = gpt2().train(), padding("right")
    replace_attention(model)

    def gradients() -> list[Tensor]:
        model.zero_grad()
        model(tokens(), attention_mask=mask, labels=tokens()).loss.backward()
        return [p.grad.clone() for p in model.parameters()]

    want = gradients()
    for reentrant in (False, True):
        model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        for got, g in zip(gradients(), want, strict=True):
            torch.testing.assert_close(got, g, **EXACT)


@pytest.mark.parametrize("masked", [False, True])
def test_compiles_whole(masked: bool):
    model, (mask, _) = gpt2(n_layer=1), padding("right")
    replace_attention(model)
    kwargs = {"attention_mask": mask} if masked else {}
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(tokens(), **kwargs).logits, model(tokens(), **kwargs).logits, **EXACT)


def test_half_precision():
    mask, _ = padding("right")
    model = bert().to(torch.bfloat16)
    replace_attention(model)
    assert {p.dtype for name, p in model.named_parameters() if ".filter." not in name} == {torch.bfloat16}
    out = model(tokens(), attention_mask=mask).logits
    want = copy.deepcopy(model).double()(tokens(), attention_mask=mask).logits
    assert out.dtype == torch.bfloat16
    keep = mask.bool()
    assert (out.double() - want)[keep].abs().max() < 0.05 * want.abs().max()
    model = bert().float()
    replace_attention(model)
    with torch.autocast("cpu", torch.bfloat16):
        half = model(tokens(), attention_mask=mask).logits
    full = model(tokens(), attention_mask=mask).logits
    assert (half.float() - full)[keep].abs().max() < 0.05 * full.abs().max()
