"""Longer rows for a trained model: the same outputs for short ones, steps, and saving."""

from __future__ import annotations

import pytest
import torch

from helpers.models import L_MAX, V, build
from hyena.models import CausalLM, CausalLMConfig, HyenaDNA, HyenaDNAConfig


@pytest.mark.parametrize("name", ["hyena", "dna"])
def test_a_longer_l_max(name: str) -> None:
    model, x = build(name), torch.randint(V, (2, 2 * L_MAX))
    short = model(x[:, :L_MAX])
    with pytest.raises(ValueError, match=f"longer than this HyenaOperator's l_max={L_MAX}; extend"):
        model(x)
    model.extend(2 * L_MAX)
    assert model.config.l_max == 2 * L_MAX
    long = model(x)
    assert (long[:, :L_MAX] - short).abs().max() < 1e-10
    state = model.init_state(2)
    stepped = torch.cat([model.prefill(part, state)[0] for part in x.split([50, 1, 45], dim=1)], dim=1)
    assert (stepped - long).abs().max() < 1e-10
    assert len(model.generate(x[:1, :L_MAX], L_MAX)[0]) == 2 * L_MAX
    again: torch.nn.Module
    if isinstance(model, CausalLM):
        again = CausalLM(CausalLMConfig.from_dict(model.config.to_dict()), dtype=torch.float64)
    else:
        again = HyenaDNA(HyenaDNAConfig.from_dict(model.config.to_dict()), dtype=torch.float64)
    again.load_state_dict(model.state_dict())
    assert (again.eval()(x) - long).abs().max() < 1e-10


def test_filters_may_be_stretched() -> None:
    model, x = build("hyena"), torch.randint(V, (1, L_MAX))
    before = model(x)
    model.extend(2 * L_MAX, "stretch")
    assert (model(x) - before).abs().max() > 1e-3


def test_what_cannot_be_extended() -> None:
    with pytest.raises(ValueError, match=f"learned positions, a table of l_max={L_MAX} rows, none for l_max=99"):
        build("attention").extend(99)
    model = build("dna")
    model.blocks[0].mixer = torch.nn.Identity()
    with pytest.raises(ValueError, match=r"blocks\.0\.mixer is a Identity, which has no extend"):
        model.extend(99)
    assert model.config.l_max == L_MAX
    with pytest.raises(ValueError, match=r"l_max must be an integer, got 99\.5"):
        build("hyena").extend(99.5)
