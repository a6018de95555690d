"""Every exported mixer in a language model: it trains, saves its config, and decodes what it computes at once."""

from __future__ import annotations

import inspect

import pytest
import torch

import hyena.mixers
from hyena.mixers import Mixer
from hyena.models import CausalLM, CausalLMConfig

NAMES = [
    name
    for name in hyena.mixers.__all__
    if issubclass(kind := getattr(hyena.mixers, name), Mixer)
    and not inspect.isabstract(kind)
    and not kind.takes_grid  # of images: in test_vit.py
]


@pytest.mark.parametrize("name", NAMES)
def test_trains_and_decodes(name: str) -> None:
    torch.manual_seed(0)
    config = CausalLMConfig(vocab_size=11, l_max=32, d_model=16, num_layers=2, mixer=name)
    model = CausalLM(CausalLMConfig.from_dict(config.to_dict()), dtype=torch.float64)
    tokens = torch.randint(11, (3, 17))
    optimizer = torch.optim.AdamW(hyena.param_groups(model, 1e-2))
    losses = []
    for _ in range(12):
        loss = model.loss(tokens[:, :-1], tokens[:, 1:])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]
    made = model.generate([tokens[0, :9], tokens[1, :4]], 5, temperature=0)
    model.eval()
    for row, start in zip(made, (9, 4), strict=True):
        for t in range(start, start + 5):
            assert row[t] == model(row[None, :t])[0, -1].argmax()
