"""Codes whose weights have the same names and shapes: each by its definition, and told apart by ``layout`` only."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from helpers.released import deviation, operator, random_state
from hyena.checkpoints import load_safari_operator

CONFIG: dict[str, Any] = {"d_model": 6, "l_max": 40, "emb_dim": 5, "filter_order": 8, "w": 10}


@pytest.mark.parametrize("settings", [{}, {"num_blocks": 2}, {"normalized": True}, {"short_filter_order": 4}])
def test_zoology_has_its_gates_in_the_other_order(settings: dict[str, Any]) -> None:
    config = CONFIG | settings
    state = {name: t.requires_grad_() for name, t in random_state(config).items()}
    u = torch.randn(2, 40, 6).double().requires_grad_()
    dy = torch.randn(2, 40, 6).double()
    outputs = {}
    for layout in ("safari", "zoology"):
        op = load_safari_operator(state, config, layout)
        want = operator(state, config, u, layout)
        got = outputs[layout] = op(u)
        assert deviation(got, want) < 1e-10
        (du,) = torch.autograd.grad(got, u, dy)
        (want_du,) = torch.autograd.grad(want, u, dy)
        assert deviation(du, want_du) < 1e-10
    assert deviation(outputs["zoology"], outputs["safari"]) > 0.1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"order": 3}, "order=3 cannot be loaded, only 2: the zoology operator does not read it"),
        ({"activation": "gelu"}, "activation='gelu' cannot be loaded.*the zoology operator does not read it"),
        ({"post_order_ffn": True}, "post_order_ffn=True cannot be loaded.*the zoology operator does not read it"),
    ],
)
def test_what_zoology_does_not_read(settings: dict[str, Any], message: str) -> None:
    config = CONFIG | settings
    with pytest.raises(ValueError, match=message):
        load_safari_operator(random_state(config), config, "zoology")


def test_two_filters_are_told_apart_too() -> None:
    config = CONFIG | {"order": 3}
    state, u = random_state(config), torch.randn(1, 20, 6).double()
    for layout in ("safari", "standalone"):
        assert deviation(load_safari_operator(state, config, layout)(u), operator(state, config, u, layout)) < 1e-10
