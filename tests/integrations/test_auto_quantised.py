"""Quantised loading of the models for Auto classes, with what of it runs on a CPU."""

from __future__ import annotations

import importlib.util
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import nn

from helpers.auto_models import build, tokens

pytest.importorskip("accelerate")


def torchao() -> Any:
    kinds = pytest.importorskip("torchao.quantization")
    return transformers.TorchAoConfig(kinds.Int8WeightOnlyConfig())


def quanto() -> Any:
    pytest.importorskip("optimum.quanto")
    return transformers.QuantoConfig(weights="int8")


def bitsandbytes() -> Any:
    pytest.importorskip("bitsandbytes")
    return transformers.BitsAndBytesConfig(load_in_8bit=True)


@pytest.mark.parametrize("make", [torchao, quanto, bitsandbytes])
@pytest.mark.parametrize("name", ["HyenaForCausalLM", "HyenaDNAForCausalLM"])
@torch.no_grad()
def test_in_eight_bits(name: str, make: Any, tmp_path: Path):
    """Projections and MLPs are quantised, filters are not; steps give the text of the whole."""
    how = make()
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    model = build(name, torch.float32, d_model=64)
    model.save_pretrained(tmp_path / "model")
    ids = tokens(name)
    small = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "model", quantization_config=how, device_map="cpu"
    )
    for layer in small.model.blocks:
        for part in (layer.mixer.in_proj, layer.mixer.out_proj, layer.mlp.fc1, layer.mlp.fc2):
            assert type(part.weight) is not nn.Parameter
        for key, p in layer.mixer.conv.filter.named_parameters():
            assert type(p) is nn.Parameter, key
            assert torch.equal(p, model.get_parameter(f"model.blocks.{layer.layer_idx}.mixer.conv.filter.{key}"))
    got, want = small(ids).logits, model(ids).logits
    assert 0 < (got - want).norm() / want.norm() < 0.1
    text = {"max_new_tokens": 4, "do_sample": False, "eos_token_id": None, "pad_token_id": 4}
    if make is not bitsandbytes:  # whose large activations are found in all positions together
        assert torch.equal(small.generate(ids, **text), small.generate(ids, use_cache=False, **text))
    if "DNA" in name:
        with pytest.raises(ValueError, match="has no quantised weights"):
            small.save_pretrained(tmp_path / "small")


def test_packages_that_are_not_there(tmp_path: Path):
    build("HyenaForCausalLM", torch.float32).save_pretrained(tmp_path)
    if importlib.util.find_spec("bitsandbytes") is not None:
        pytest.skip("bitsandbytes is here")
    how = transformers.BitsAndBytesConfig(load_in_8bit=True)
    with pytest.raises(ImportError, match="bitsandbytes"):
        transformers.AutoModelForCausalLM.from_pretrained(tmp_path, quantization_config=how)
