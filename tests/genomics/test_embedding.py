"""Pooled hidden states and class logits of ragged batches: against runs over one sequence at a time."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from helpers.dna import MODELS, build, hidden_states, tokens
from hyena.genomics import DNATokenizer, Record, classify, embed
from hyena.genomics import hidden_states as states_of
from hyena.models import CausalLM, CausalLMConfig

BUILT = {name: build(name) for name in MODELS}
LAYERS = [0, 1, 2, "norm"]


def pooled(x: Tensor, pooling: str) -> Tensor:
    if pooling == "none":
        return x
    return {"mean": x.sum(0) / len(x), "max": x.max(0).values, "last": x[len(x) - 1]}[pooling]


@pytest.mark.parametrize("name", MODELS)
@given(
    sequences=st.lists(st.text("ACGTN", min_size=1, max_size=33), min_size=1, max_size=5),
    max_tokens=st.sampled_from([1, 3, 8, 40, 1000]),
    pooling=st.sampled_from(["mean", "max", "last", "none"]),
    strands=st.sampled_from(["forward", "reverse", "both"]),
)
def test_embeddings(name: str, sequences: list[str], max_tokens: int, pooling: str, strands: str) -> None:
    model = BUILT[name]
    got = embed(
        model, sequences, LAYERS, tokenizer=DNATokenizer(), pooling=pooling, strands=strands, max_tokens=max_tokens
    )
    assert list(got) == LAYERS
    for i, sequence in enumerate(sequences):
        forward, reverse = (hidden_states(model, sequence, strand) for strand in ("forward", "reverse"))
        for at, layer in enumerate(LAYERS):
            ahead, behind = pooled(forward[at], pooling), pooled(reverse[at], pooling)
            if pooling == "none":  # by the letters of the forward strand
                behind = torch.stack(list(reversed(list(behind))))
            want = {"forward": ahead, "reverse": behind, "both": (ahead + behind) / 2}[strands]
            torch.testing.assert_close(got[layer][i], want, rtol=0, atol=1e-10)


def test_two_sided_models_see_no_padding() -> None:
    torch.manual_seed(0)
    model = CausalLM(CausalLMConfig(12, 40, 16, 2, mixer_options={"causal": False}), dtype=torch.float64).eval()
    sequences = ["ACGTTGCA", "GAT", "ACGTTGCATTCAG"]
    found = embed(model, sequences, tokenizer=DNATokenizer())["norm"]
    for i, sequence in enumerate(sequences):
        torch.testing.assert_close(found[i], hidden_states(model, sequence)[-1].mean(0), rtol=0, atol=1e-10)
    with pytest.raises(ValueError, match=r"pieces of max_tokens=10, but .* max_tokens=13 takes it whole"):
        embed(model, sequences, tokenizer=DNATokenizer(), max_tokens=10)


def test_shapes_and_dtypes() -> None:
    model = build(head=None)
    assert embed(model, ["ACG", "A"])["norm"].shape == (2, 16)
    assert embed(model, ["ACG", "A"], pooling="none")["norm"][0].shape == (3, 16)
    assert embed(model.float(), ["ACG"])["norm"].dtype == torch.float32
    assert embed(model.to(torch.bfloat16), ["ACG"])["norm"].dtype == torch.float32


def test_hooks_are_gone_afterwards_and_others_act() -> None:
    model = build()
    plain = embed(model, ["ACGT"], [1])[1]
    assert not any(block._forward_hooks or block._forward_pre_hooks for block in model.blocks)
    model.blocks[0].mlp.register_forward_hook(lambda _, args, output: 2 * output)
    assert not torch.allclose(embed(model, ["ACGT"], [1])[1], plain)
    # With an error in between, too.
    model.blocks[1].register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        embed(model, ["ACGT"], [1, 2])
    assert [len(block._forward_hooks) for block in model.blocks] == [0, 0]


def test_hidden_states_keep_gradients() -> None:
    model = build()
    first, last = states_of(model, [0, "norm"], tokens("ACGT"))
    last.sum().backward()
    assert first.requires_grad
    assert model.embedding.weight.grad is not None


def test_bad_arguments() -> None:
    model = build()
    for layers in ([3], [-1], ["last"], [], [1, 1], [True], [1.0]):
        with pytest.raises(ValueError, match=r"layers must be different ones of 0 .*, 1 to 2 .* got"):
            embed(model, ["ACGT"], layers)
    with pytest.raises(ValueError, match=r"layers is a list, got 'norm': pass \['norm'\]"):
        embed(model, ["ACGT"], "norm")
    with pytest.raises(ValueError, match="pooling must be one of mean, max, last, none, got 'sum'"):
        embed(model, ["ACGT"], pooling="sum")
    with pytest.raises(ValueError, match=r"record 'b' has 65 letters, .* l_max=64: give it at most 64 letters"):
        embed(model, [Record("b", "A" * 65)])


@given(
    sequences=st.lists(st.text("ACGTN", min_size=1, max_size=33), min_size=1, max_size=5),
    max_tokens=st.sampled_from([1, 40, 1000]),
    pooling=st.sampled_from(["mean", "last"]),
)
def test_classes(sequences: list[str], max_tokens: int, pooling: str) -> None:
    model = build(head="classes", num_classes=3, pooling=pooling)
    weight, bias = model.head.weight, model.head.bias
    for strands in ("forward", "reverse", "both"):
        got = classify(model, sequences, strands=strands, max_tokens=max_tokens)
        for i, sequence in enumerate(sequences):
            logits = [
                pooled(hidden_states(model, sequence, strand)[-1], pooling) @ weight.T + bias
                for strand in ("forward", "reverse")
                if strands in (strand, "both")
            ]
            torch.testing.assert_close(got[i], sum(logits) / len(logits), rtol=0, atol=1e-10)


def test_classes_of_a_model_that_has_none() -> None:
    with pytest.raises(
        ValueError, match=r"this HyenaDNA has head='lm' and gives no class logits: load it with num_labels="
    ):
        classify(build(), ["ACGT"])
