"""Weights that version 0.1 saved: every one has a place under today's names, and they give what they gave."""

from __future__ import annotations

import json
import re
from functools import partial
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor, nn

from helpers.released import GOLDEN, deviation
from hyena import HyenaFilter, HyenaOperator, models

with safe_open(GOLDEN / "state_dicts.safetensors", "pt") as file:
    TENSORS: dict[str, Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (a file)
    CASES: dict[str, dict[str, Any]] = json.loads(file.metadata()["cases"])


def built(name: str) -> nn.Module:
    case = CASES[name]
    if case["class"] == "HyenaOperator":
        config = dict(case["config"])
        filters = partial(HyenaFilter, width=config.pop("filter_order"), emb_dim=config.pop("emb_dim"))
        return HyenaOperator(**config, filter=filters)
    if case["class"] == "HyenaDNA":
        return models.HyenaDNA(models.HyenaDNAConfig.from_dict(case["config"]))
    return models.CausalLM(models.CausalLMConfig.from_dict(case["config"]))


def state(name: str) -> dict[str, Tensor]:
    prefix = f"{name}.state."
    return {key.removeprefix(prefix): t for key, t in TENSORS.items() if key.startswith(prefix)}


@pytest.mark.parametrize("name", CASES)
def test_names_and_shapes(name: str) -> None:
    # The unit of a filter's time is saved since; without it, it is the one that the filter is made with.
    now = {key: tuple(t.shape) for key, t in built(name).state_dict().items() if not key.endswith(".time_unit")}
    assert now == {todays(key): tuple(t.shape) for key, t in state(name).items()}


def todays(name: str) -> str:
    """Today's name of a weight."""
    for before, now in (
        (r"\bshort_(weight|bias)$", r"short.\1"),
        (r"\bfilter_bias$", "conv.bias"),
        (r"(^|mixer\.)filter\.", r"\1conv.filter."),
    ):
        name = re.sub(before, now, name)
    return name


@pytest.mark.parametrize("name", CASES)
def test_every_weight_arrives(name: str) -> None:
    module, saved = built(name), state(name)
    with torch.no_grad():
        for p in module.parameters():
            p.fill_(torch.nan)
    module.load_state_dict(saved)
    loaded = module.state_dict()
    assert [key for key, t in saved.items() if not torch.equal(loaded[todays(key)], t)] == []
    assert all(p.isfinite().all() for p in module.parameters())


@pytest.mark.parametrize("name", [name for name in CASES if "attention" not in name])
def test_other_names_are_refused(name: str) -> None:
    saved = state(name)
    first = next(key for key in saved if key.endswith("filter_bias"))
    saved[first.replace("filter_bias", "filter_weight")] = saved.pop(first)
    with pytest.raises(RuntimeError, match="filter_weight"):
        built(name).load_state_dict(saved)


@pytest.mark.parametrize("name", CASES)
def test_outputs(name: str) -> None:
    module = built(name)
    module.load_state_dict(state(name))
    module.double().eval()
    x = TENSORS[f"{name}.input"]
    with torch.no_grad():
        y = module(x.double() if x.is_floating_point() else x)
    assert deviation(y, TENSORS[f"{name}.output"]) < 1e-10
