"""Config of the models for Auto classes: names, checks, and what is not known."""

from __future__ import annotations

import copy
import functools
import importlib
import json
import pickle
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from helpers.auto_models import build, config, tokens
from hyena import HyenaOperator
from hyena.filters import ExplicitFilter
from hyena.integrations import auto
from hyena.models import CausalLM, CausalLMConfig


def test_both_kinds_of_names(tmp_path: Path):
    ours = auto.HyenaConfig(vocab_size=30, l_max=50, d_model=8, num_layers=3, d_inner=20)
    theirs = auto.HyenaConfig(
        vocab_size=30, max_position_embeddings=50, hidden_size=8, num_hidden_layers=3, intermediate_size=20
    )
    assert ours.to_dict() == theirs.to_dict()
    assert (ours.max_position_embeddings, ours.hidden_size, ours.num_hidden_layers, ours.intermediate_size) == (
        50,
        8,
        3,
        20,
    )
    ours.save_pretrained(tmp_path)
    again = AutoConfig.from_pretrained(tmp_path)
    assert again.to_dict() | {"_name_or_path": ""} == ours.to_dict() | {"_name_or_path": ""}
    assert AutoConfig.from_pretrained(tmp_path, hidden_size=16, num_labels=4).d_model == 16


def test_two_names_of_one_setting(tmp_path: Path):
    """Neither wins silently, a default's value that is given included; where they agree there is nothing to say."""
    with pytest.raises(ValueError, match="d_model=24 and hidden_size=16 are two names of one setting of a HyenaConfig"):
        auto.HyenaConfig(d_model=24, hidden_size=16)
    with pytest.raises(ValueError, match="d_model=128 and hidden_size=16"):
        auto.HyenaConfig(d_model=128, hidden_size=16)
    with pytest.raises(ValueError, match="l_max=50 and max_position_embeddings=64"):
        auto.HyenaConfig(30, 50, max_position_embeddings=64)
    with pytest.raises(ValueError, match=r"num_layers=3 and num_hidden_layers=4 .* of a HyenaDNAConfig"):
        auto.HyenaDNAConfig(num_layers=3, num_hidden_layers=4)
    made = auto.HyenaConfig(d_model=24, hidden_size=24)
    assert copy.deepcopy(made).d_model == pickle.loads(pickle.dumps(made)).d_model == 24
    made.save_pretrained(tmp_path)
    assert AutoConfig.from_pretrained(tmp_path, hidden_size=16, d_model=16).d_model == 16
    with pytest.raises(ValueError, match="hidden_size=16 and d_model=8 are two names"):
        AutoConfig.from_pretrained(tmp_path, hidden_size=16, d_model=8)


def test_filters_and_mixers_as_classes(tmp_path: Path):
    """What hyena exports is saved by its name."""
    few = functools.partial(ExplicitFilter, taps=4)
    made = auto.HyenaConfig(
        30, 50, 8, 1, mixer=functools.partial(HyenaOperator, order=3), mixer_options={"filter": few}
    )
    assert made.mixer == "HyenaOperator"
    assert made.mixer_options == {"order": 3, "filter": {"class": "ExplicitFilter", "taps": 4}}
    model = AutoModel.from_config(made)
    model.save_pretrained(tmp_path)
    again = AutoModel.from_pretrained(tmp_path)
    assert type(again.blocks[0].mixer.conv.filter) is ExplicitFilter
    assert torch.equal(
        again(tokens()[:, :5] % 30).last_hidden_state, model.eval()(tokens()[:, :5] % 30).last_hidden_state
    )


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        ({"d_modle": 8}, TypeError, "HyenaConfig has no keyword 'd_modle'; did you mean d_model"),
        ({"nonsense": 8}, TypeError, "no keyword 'nonsense'; it has vocab_size, l_max"),
        ({"vocab_size": 0}, ValueError, "vocab_size must be at least 1, got 0"),
        ({"l_max": 2.5}, ValueError, r"l_max must be an integer, got 2\.5"),
        ({"hidden_size": -1}, ValueError, "d_model must be at least 1, got -1"),
        ({"dropout": 1.5}, ValueError, r"dropout must be a number in \[0, 1\), got 1\.5"),
        ({"mixer": "Hyen"}, ValueError, "hyena.mixers exports no Mixer 'Hyen', only"),
        ({"mixer": lambda d, n: None}, ValueError, "cannot be saved"),
        ({"mixer_options": {"ordr": 2}}, ValueError, "HyenaOperator has no option 'ordr'"),
        ({"mixer_options": {"causal": False}}, ValueError, "pass causal= to the config"),
        ({"causal": "yes"}, ValueError, "causal must be True, False or None, got 'yes'"),
        ({"causal": 0}, ValueError, "causal must be True, False or None, got 0"),
        ({"causal": 1}, ValueError, "causal must be True, False or None, got 1"),
        ({"pooling": "max"}, ValueError, "pooling must be 'last' or 'mean', got 'max'"),
        ({"classifier_dropout": 2}, ValueError, r"classifier_dropout must be a number in \[0, 1\), got 2"),
        ({"classifier_dropout": "0.1"}, ValueError, r"classifier_dropout must be a number in \[0, 1\), got '0.1'"),
        ({"classifier_dropout": float("nan")}, ValueError, r"classifier_dropout must be a number in .*, got nan"),
        ({"pad_token_id": 500}, ValueError, "pad_token_id must be .* 0 to 255 with vocab_size=256, got 500"),
        ({"bos_token_id": -1}, ValueError, "bos_token_id must be None or a token, from 0 to 255 .*, got -1"),
        ({"bos_token_id": [1, 2]}, ValueError, r"bos_token_id must be None or a token, .*, got \[1, 2\]"),
        ({"eos_token_id": 256}, ValueError, "eos_token_id must be None, a token or a list .*, got 256"),
        ({"eos_token_id": [1, 999]}, ValueError, r"eos_token_id must be .*, got \[1, 999\]"),
        ({"eos_token_id": []}, ValueError, r"eos_token_id must be .*, got \[\]"),
        ({"eos_token_id": "a"}, ValueError, "eos_token_id must be .*, got 'a'"),
        ({"eos_token_id": True}, ValueError, "eos_token_id must be .*, got True"),
        ({"pad_token_id": 1.5}, ValueError, r"pad_token_id must be .*, got 1\.5"),
        ({"is_decoder": True}, TypeError, "a HyenaConfig has no use for is_decoder=True"),
        ({"chunk_size_feed_forward": 2}, TypeError, "no use for chunk_size_feed_forward=2"),
        ({"is_encoder_decoder": True}, TypeError, "no use for is_encoder_decoder=True"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_is_wrong_is_named(wrong: dict[str, Any], error: type, message: str):
    with pytest.raises(error, match=message):
        auto.HyenaConfig(**wrong)
    if error is ValueError and "mixer" not in wrong:
        changed = auto.HyenaConfig()
        for name, value in wrong.items():
            setattr(changed, name, value)
        with pytest.raises(ValueError, match=message):
            auto.HyenaModel(changed)


@pytest.mark.parametrize("std", [-1.0, float("nan"), "0.1", True])
def test_a_start_that_is_none(std: Any):
    with pytest.raises(ValueError, match="initializer_range must be a finite number, not negative, got"):
        auto.HyenaDNAConfig(initializer_range=std)


def test_directions_that_contradict():
    with pytest.raises(ValueError, match="HyenaForMaskedLM sees both sides"):
        auto.HyenaForMaskedLM(config(causal=True))
    with pytest.raises(ValueError, match="HyenaForCausalLM predicts the next token"):
        auto.HyenaForCausalLM(config(causal=False))
    shared = config()
    assert auto.HyenaForMaskedLM(shared).config.causal is False
    assert shared.causal is None  # the caller's stays as it was


def test_folders_that_are_none(tmp_path: Path):
    with pytest.raises((OSError, ValueError), match=r"config\.json"):
        AutoModel.from_pretrained(tmp_path)
    build("HyenaForCausalLM", torch.float32).save_pretrained(tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**values, "model_type": "hyenna"}))
    with pytest.raises(ValueError, match="hyenna"):
        AutoModel.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({**values, "mixer": "Transformer"}))
    with pytest.raises(ValueError, match="exports no Mixer 'Transformer'"):
        AutoModel.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({**values, "num_layers": 3}))
    _, found = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert any("blocks.2." in key for key in found["missing_keys"])


def test_what_other_tools_write_is_kept(tmp_path: Path):
    build("HyenaForCausalLM", torch.float32).save_pretrained(tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**values, "tool_version": "3"}))
    with pytest.warns(UserWarning, match="HyenaConfig reads no tool_version"):
        model = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert model.config.tool_version == "3"
    with pytest.warns(UserWarning, match="tool_version"):
        assert AutoConfig.from_pretrained(tmp_path).to_dict()["tool_version"] == "3"
    with pytest.raises(TypeError, match="hidden_sze"), pytest.warns(UserWarning, match="tool_version"):
        AutoModelForCausalLM.from_pretrained(tmp_path, hidden_sze=3)


@pytest.mark.parametrize(("tied", "mlp"), [(True, "swiglu"), (False, "swiglu"), (True, "gelu")])
def test_to_and_from_the_library(tied: bool, mlp: str, tmp_path: Path):
    made = CausalLMConfig(
        40, 64, 16, 2, tie_embeddings=tied, mixer_options={"filter": {"class": "HyenaFilter", "width": 8}}, mlp=mlp
    )
    ours = CausalLM(made, dtype=torch.float64).eval()
    model = auto.HyenaForCausalLM.from_hyena(ours)
    assert torch.equal(model(tokens()).logits, ours(tokens()))
    model.save_pretrained(tmp_path)
    back = AutoModelForCausalLM.from_pretrained(tmp_path).to_hyena()
    assert torch.equal(back(tokens()), ours(tokens()))
    assert back.config == made


def test_a_saved_config_without_the_mlp_is_of_gelu(tmp_path: Path):
    """Saved when there was no other."""
    model = build(mlp="gelu")
    assert type(model.model.blocks[0].mlp).__name__ == "MLP"
    model.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert saved.pop("mlp") == "gelu"
    (tmp_path / "config.json").write_text(json.dumps(saved))
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert again.config.mlp == "gelu"
    assert torch.equal(again(tokens()).logits, model(tokens()).logits)
    build().save_pretrained(tmp_path / "new")
    assert json.loads((tmp_path / "new" / "config.json").read_text())["mlp"] == "swiglu"
    with pytest.raises(ValueError, match="mlp must be one of gelu, gelu_tanh, geglu, swiglu, got 'relu'"):
        config(mlp="relu")


def test_without_transformers(monkeypatch: pytest.MonkeyPatch):
    for name in [name for name in sys.modules if name.startswith("hyena.integrations.auto")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'hyena\[transformers\]'"):
        importlib.import_module("hyena.integrations.auto")
