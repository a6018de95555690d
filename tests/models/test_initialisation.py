"""Initialisation: deferred on the meta device, sharded by FSDP2, and again."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from helpers import sharded
from hyena.filters import HyenaFilter
from hyena.models import CausalLM, CausalLMConfig, HyenaDNA, HyenaDNAConfig

LAST_LAYER = ".filter.ffn.out.weight"


def build(name: str, **place: object) -> CausalLM | HyenaDNA:
    if name == "dna":
        return HyenaDNA(HyenaDNAConfig(l_max=64, d_model=64, head="lm", embed_dropout=0.0), **place)
    mixer, mlp = ("HyenaOperator", "swiglu") if name == "gated" else (name, "gelu")
    config = CausalLMConfig(vocab_size=50, l_max=64, d_model=64, num_layers=2, mixer=mixer, mlp=mlp)
    return CausalLM(config, **place)


def check(model: CausalLM | HyenaDNA, name: str) -> None:
    """Every parameter and buffer has its distribution; the loss is that of a model that knows nothing."""
    fresh = build(name)
    assert model.state_dict().keys() == fresh.state_dict().keys()
    for key, got in model.state_dict().items():
        got, want = (t.full_tensor() if hasattr(t, "full_tensor") else t for t in (got, fresh.state_dict()[key]))
        assert got.isfinite().all(), key
        if want.numel() < 50:
            torch.testing.assert_close(got.mean(), want.mean(), atol=1.0, rtol=0.1)
            continue
        spread = want.std().item()
        error = 6 * spread * want.numel() ** -0.5 + 1e-6  # four standard errors of the difference of two means
        assert abs(got.mean() - want.mean()).item() <= error, key
        if key.endswith(LAST_LAYER):  # scaled by what the hidden layers drew: not independent entries
            assert spread / 1.6 < got.std().item() < 1.6 * spread, key
        else:
            assert abs(got.std() - spread).item() <= error, key
    for part in model.modules():
        if isinstance(part, HyenaFilter) and not hasattr(part.ffn.out.weight, "full_tensor"):
            norm = part(part.l_max).norm(dim=1)
            assert norm.min() > 0.9, name
            assert norm.max() < 1.1, name
    tokens = torch.randint(12, (40, 60))
    with torch.no_grad():
        logits, like = model(tokens), fresh(tokens)
    targets = torch.randint(logits.size(-1), (tokens.numel(),))
    loss, usual = (nn.functional.cross_entropy(each.flatten(0, 1), targets).item() for each in (logits, like))
    assert abs(loss - usual) < 0.15
    # What a gate lets through is smaller at the start, so that more is left of the token itself, which the output
    # layer, being the embedding, predicts.
    if name != "gated":
        assert abs(loss - torch.tensor(float(logits.size(-1))).log().item()) < 0.3
    assert model.head.weight is model.embedding.weight
    assert len(model.generate(tokens[:2, :20], 3)[0]) == 23


@pytest.mark.parametrize("name", ["HyenaOperator", "gated", "Attention", "dna"])
def test_deferred(name: str) -> None:
    model = build(name, device="meta")
    assert all(t.is_meta for t in model.state_dict().values())
    model.to_empty(device="cpu")
    with torch.no_grad():
        for t in (*model.parameters(), *model.buffers()):
            t.fill_(torch.nan)
    model.reset_parameters()
    check(model, name)


@pytest.mark.usefixtures("process_group")
@pytest.mark.parametrize("name", ["HyenaOperator", "gated", "Attention", "dna"])
@pytest.mark.parametrize("units", ["model", "blocks"])
def test_deferred_and_sharded(name: str, units: str) -> None:
    model = sharded.shard(build(name, device="meta"), units)
    model.to_empty(device="cpu")
    with torch.no_grad():
        for t in (*model.parameters(), *model.buffers()):
            t.fill_(torch.nan)
    model.reset_parameters()
    check(model, name)


def test_again() -> None:
    model = build("HyenaOperator")
    before = {name: p.clone() for name, p in model.named_parameters()}
    model.reset_parameters()
    for name, p in model.named_parameters():
        assert torch.equal(p, before[name]) == (before[name].numel() == 1 or before[name].std().item() == 0), name
    check(model, "HyenaOperator")


def test_a_mixer_that_cannot_be_initialised_says_so() -> None:
    class Own(nn.Linear):
        reset_parameters = None  # type: ignore[assignment]

        def __init__(self) -> None:
            nn.Module.__init__(self)
            self.weight = nn.Parameter(torch.zeros(3))

    model = build("dna")
    model.blocks[1].mixer = Own()
    with pytest.raises(ValueError, match="Own has no reset_parameters"):
        model.reset_parameters()
