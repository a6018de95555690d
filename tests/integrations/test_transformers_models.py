"""Every kind of transformers' attention that is promised: replaced, run both ways, padded, trained, generating."""

from __future__ import annotations

import inspect

import pytest
import torch
from torch import Tensor, nn

from helpers.attention_models import EXACT, operators
from helpers.transformers_models import GENERATING, KINDS, SIZES, L, padding, tokens
from hyena.integrations.adapters.transformers import PaddingHook
from hyena.integrations.replace import replace_attention

PADDED = [(name, side) for name, kind in KINDS.items() for side in kind.padded]


def replaced(name: str, attention: str = "sdpa") -> nn.Module:
    model = KINDS[name].make(attention)
    replace_attention(model, **KINDS[name].options)
    return model


@pytest.mark.parametrize("name", KINDS)
def test_what_is_replaced_and_what_stays(name: str):
    kind = KINDS[name]
    model = kind.make()
    report = replace_attention(model, **kind.options)
    assert [entry.causal for entry in report.replaced] == list(kind.causal)
    assert len(report.kept) == kind.kept
    assert {entry.reason for entry in report.kept} <= {"cross-attention, between two sequences"}
    first = operators(model)[0]
    output = kind.run(model, **kind.inputs())
    loss = output.square().mean()
    loss.backward()
    assert output.isfinite().all()
    for op in operators(model):
        assert all(p.grad is not None and p.grad.isfinite().all() for p in op.parameters())
        assert op.dropout.p == first.dropout.p
    if any(kind.causal):
        sizes = {op.l_max for op in operators(model) if op.causal}
        assert sizes == {48}


@pytest.mark.parametrize("carried", ["by the hook", "in masks for sdpa", "in masks for eager"])
@pytest.mark.parametrize(("name", "side"), PADDED)
def test_padded_rows_give_what_they_give_alone(name: str, side: str, carried: str):
    model, kind = replaced(name, "eager" if "eager" in carried else "sdpa"), KINDS[name]
    hooked = [m for m in model.modules() if any(isinstance(h, PaddingHook) for h in m._forward_pre_hooks.values())]
    if "masks" in carried:
        for m in hooked:
            m._forward_pre_hooks.clear()
    mask, positions = padding(side)
    inputs = kind.inputs()
    given = {"attention_mask": mask}
    if "position_ids" in inspect.signature(model.forward).parameters:
        given["position_ids"] = positions + kind.first
    out = kind.run(model, **inputs, **given)
    for i, n in enumerate(SIZES):
        rows = slice(None, n) if side == "right" else slice(L - n, None)
        alone = {key: value[i : i + 1] for key, value in inputs.items()}
        alone["input_ids"] = alone["input_ids"][:, rows]
        want = kind.run(model, **alone)[0]
        got = out[i] if "decoder_input_ids" in inputs else out[i, rows]
        torch.testing.assert_close(got, want, **EXACT)


@pytest.mark.parametrize("name", GENERATING)
def test_generates_what_it_generates_without_a_cache(name: str):
    model = replaced(name)
    mask, _ = padding("right" if model.config.is_encoder_decoder else "left")
    settings = {"attention_mask": mask, "max_new_tokens": 6, "pad_token_id": 2, "eos_token_id": 1}

    def generate(**kwargs) -> Tensor:
        torch.manual_seed(3)
        return model.generate(tokens(), **settings | kwargs)

    for way in ({"do_sample": False}, {"do_sample": True}, {"do_sample": False, "num_beams": 3}):
        want = generate(use_cache=False, **way)
        assert torch.equal(generate(use_cache=True, **way), want)
