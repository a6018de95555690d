"""Configs of models: classes by name, options checked, saved as plain values, and configs of the first version."""

from __future__ import annotations

import copy
import dataclasses
import functools
import json
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hyena import HyenaOperator, models
from hyena.filters import ExplicitFilter, HyenaFilter
from hyena.mixers import Attention, Mixer
from hyena.models import (
    CausalLM,
    CausalLMConfig,
    HyenaDNA,
    HyenaDNAConfig,
    HyenaISOConfig,
    M2BertConfig,
    PerceiverARConfig,
    StripedHyenaConfig,
    ViTConfig,
)
from hyena.models.config import ModelConfig

SIZES = {"vocab_size": 11, "l_max": 24, "d_model": 16, "num_layers": 2}
FILTER = {"class": "HyenaFilter", "freq": 2.0, "width": 7, "shift": 0.1, "emb_dim": 5}


def config(**changes: Any) -> CausalLMConfig:
    return CausalLMConfig(**{**SIZES, **changes})


class Mean(Mixer):
    """A mixer of one's own: the running mean, of no exported class."""

    def __init__(self, d_model: int, l_max: int, scale: float = 1.0) -> None:
        super().__init__()
        self.d_model, self.l_max, self.causal, self.scale = d_model, l_max, True, scale

    def forward(
        self,
        u: Tensor,
        mask: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        max_seqlen: int | None = None,
        state: Any = None,
    ) -> Tensor:
        return self.scale * u.cumsum(1) / torch.arange(1, u.size(1) + 1, dtype=u.dtype)[:, None]


@pytest.mark.parametrize(
    ("mixer", "options"),
    [
        ("HyenaOperator", {}),
        ("HyenaOperator", {"order": 3, "short_taps": 2, "filter": FILTER}),
        ("HyenaOperator", {"filter": {"class": "ExplicitFilter", "taps": 5}}),
        ("Attention", {"num_heads": 4, "dropout": 0.1}),
    ],
)
def test_round_trip(mixer: str, options: dict[str, Any]) -> None:
    c = config(mixer=mixer, mixer_options=options, d_inner=24, dropout=0.1, tie_embeddings=False)
    model = CausalLM(c, dtype=torch.float64).eval()
    again = CausalLM(CausalLMConfig.from_dict(json.loads(json.dumps(c.to_dict()))), dtype=torch.float64).eval()
    assert again.config == c
    again.load_state_dict(model.state_dict())
    x = torch.randint(11, (2, 8))
    assert torch.equal(again(x), model(x))


def test_options_reach_mixer_and_filter() -> None:
    model = CausalLM(config(mixer_options={"order": 3, "value_filter": True, "bias": False, "filter": FILTER}))
    for block in model.blocks:
        assert (block.mixer.order, block.mixer.out_proj.bias) == (3, None)
        f = next(m for m in block.modules() if isinstance(m, HyenaFilter))
        assert (f.ffn.initial_freq, f.ffn.out.in_features, f.window.shift, f.encoding.emb_dim) == (2.0, 7, 0.1, 5)
        assert f(3).shape == (3, 3, 16)
    heads = [
        block.mixer.num_heads for block in CausalLM(config(mixer="Attention", mixer_options={"num_heads": 2})).blocks
    ]
    assert heads == [2, 2]


def test_exported_classes_are_saved_by_name() -> None:
    mixer = functools.partial(HyenaOperator, order=3, filter=functools.partial(ExplicitFilter, taps=5))
    c = config(mixer=mixer, mixer_options={"bias": False})
    filter_options = {"class": "ExplicitFilter", "taps": 5}
    assert c == config(mixer_options={"order": 3, "filter": filter_options, "bias": False})
    assert config(mixer=Attention) == config(mixer="Attention")
    assert config(mixer_options={"filter": HyenaFilter}).to_dict()["mixer_options"] == {
        "filter": {"class": "HyenaFilter"}
    }


@pytest.mark.parametrize(
    "mixer", [Mean, functools.partial(Mean, scale=1.0), lambda d_model, l_max: Mean(d_model, l_max)]
)
def test_a_mixer_of_ones_own(mixer: Any) -> None:
    model, x = CausalLM(config(mixer=mixer), dtype=torch.float64), torch.randint(11, (2, 8))
    assert all(isinstance(block.mixer, Mean) for block in model.blocks)
    assert torch.equal(copy.deepcopy(model)(x), model(x))
    with pytest.raises(ValueError, match=r"CausalLMConfig\.mixer is .*cannot be saved"):
        model.config.to_dict()
    with pytest.raises(ValueError, match=r"blocks\.0\.mixer: Mean needs the whole input at once"):
        model.init_state(1)
    with pytest.raises(ValueError, match=r"\['activation'\] is .*cannot be saved"):
        config(mixer_options={"activation": torch.tanh}).to_dict()


def test_options_of_a_mixer_of_ones_own() -> None:
    scales = [block.mixer.scale for block in CausalLM(config(mixer=Mean, mixer_options={"scale": 2.0})).blocks]
    assert scales == [2.0, 2.0]
    with pytest.raises(ValueError, match="Mean has no option 'size', only scale"):
        config(mixer=Mean, mixer_options={"size": 2.0})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mixer": "Mamba"}, "exports no Mixer 'Mamba', only AFT, AFTConv, Attention, .*HyenaOperator"),
        ({"mixer": "Mixer"}, "exports no Mixer 'Mixer'"),
        ({"mixer": "HyenaState"}, "exports no Mixer 'HyenaState'"),
        ({"mixer_options": {"ordre": 3}}, "HyenaOperator has no option 'ordre', only activation, .*order"),
        ({"mixer_options": {"l_max": 3}}, "HyenaOperator has no option 'l_max'"),
        ({"mixer": "Attention", "mixer_options": {"order": 3}}, "Attention has no option 'order', only .*num_heads"),
        (
            {"mixer_options": {"filter": {"class": "S5"}}},
            "exports no Filter 'S5', only CKConv, DLR, DSS, EMA, ExplicitFilter, .*HyenaFilter",
        ),
        (
            {"mixer_options": {"filter": {"class": "HyenaFilter", "frek": 1.0}}},
            "HyenaFilter has no option 'frek', only",
        ),
        ({"mixer_options": {"filter": nn.Identity()}}, "filter: a module would be shared by all layers"),
        ({"mixer": nn.Identity()}, "mixer: a module would be shared by all layers"),
        ({"mixer_options": [1]}, r"mixer_options must be a dict of keywords, got \[1\]"),
        ({"vocab_size": 0}, "vocab_size must be at least 1, got 0"),
        ({"num_layers": -1}, "num_layers must be at least 1, got -1"),
        ({"l_max": 64.0}, "l_max must be an integer, got 64.0"),
        ({"d_model": True}, "d_model must be an integer, got True"),
        ({"d_inner": 0}, "d_inner must be at least 1, got 0"),
        ({"dropout": 1.0}, r"dropout must be a number in \[0, 1\), got 1.0"),
        ({"dropout": "0.1"}, r"dropout must be a number in \[0, 1\), got '0.1'"),
        ({"tie_embeddings": "no"}, "tie_embeddings must be True or False, got 'no'"),
        ({"mlp": "swish"}, "mlp must be one of gelu, gelu_tanh, geglu, swiglu, got 'swish'"),
        ({"mlp": nn.Identity()}, r"mlp must be one of gelu, .*, got Identity\(\)"),
        ({"gradient_checkpointing": 1}, "gradient_checkpointing must be True or False, got 1"),
    ],
)
def test_errors(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config(**changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"l_max": 64.0}, "l_max must be an integer, got 64.0"),
        ({"embed_dropout": 1}, r"embed_dropout must be a number in \[0, 1\), got 1"),
        ({"residual_in_fp32": None}, "residual_in_fp32 must be True or False, got None"),
        ({"head": "mlm"}, "head must be None, 'lm' or 'classes', got 'mlm'"),
        ({"num_classes": 2.5}, "num_classes must be an integer, got 2.5"),
    ],
)
def test_hyenadna_errors(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        HyenaDNAConfig(**changes)


# Every config of the package, with values for the fields that have none.
CONFIGS: dict[type[ModelConfig], dict[str, Any]] = {
    CausalLMConfig: {"vocab_size": 11, "l_max": 24},
    HyenaDNAConfig: {},
    HyenaISOConfig: {},
    M2BertConfig: {},
    PerceiverARConfig: {"vocab_size": 11},
    StripedHyenaConfig: {
        "vocab_size": 11,
        "l_max": 24,
        "d_model": 8,
        "layers": ("IIR", "attention"),
        "num_heads": 2,
        "rotary_frequencies": (0.5, 0.25),
    },
    ViTConfig: {},
}


def test_every_config_is_here() -> None:
    exported = {kind for name, kind in vars(models).items() if name.endswith("Config")}
    assert exported == set(CONFIGS)
    assert all(issubclass(kind, ModelConfig) for kind in exported)


@pytest.mark.parametrize("kind", CONFIGS)
def test_every_config_is_saved_and_checked(kind: type[ModelConfig]) -> None:
    """To JSON and back; and no number of it may be one that no model can be built with, or only a broken one."""
    made = kind(**CONFIGS[kind])
    assert kind.from_dict(json.loads(json.dumps(made.to_dict()))) == made
    with pytest.raises(ValueError, match=rf"unknown fields in a {kind.__name__}: \['depth'\]"):
        kind.from_dict({**made.to_dict(), "depth": 3})
    for field in dataclasses.fields(made):
        value = getattr(made, field.name)
        if isinstance(value, float) and field.name != "freq":  # which the filter checks
            for wrong in (-1.0, math.nan, math.inf, "0.1", None, True):
                with pytest.raises(ValueError, match=rf"{field.name} must be .*, got {wrong!r}"):
                    dataclasses.replace(made, **{field.name: wrong})
        elif isinstance(value, bool):
            for wrong in (0, 1, "no", None):
                with pytest.raises(ValueError, match=rf"{field.name} must be True or False, got {wrong!r}"):
                    dataclasses.replace(made, **{field.name: wrong})
    if kind is StripedHyenaConfig:
        for wrong in (math.nan, math.inf, "1", True):
            with pytest.raises(ValueError, match="rotary_frequencies must be finite numbers"):
                dataclasses.replace(made, rotary_frequencies=(0.5, wrong))


def test_a_config_without_the_mlp_is_of_gelu() -> None:
    """Saved when there was no other: the default of new configs may not reach old weights."""
    saved = config().to_dict()
    assert saved.pop("mlp") == "swiglu"
    assert CausalLMConfig.from_dict(saved) == config(mlp="gelu")
    names = CausalLM(config(mlp="gelu")).state_dict()
    CausalLM(CausalLMConfig.from_dict(saved)).load_state_dict(names)
    with pytest.raises(RuntimeError, match=r"blocks.0.mlp.gate.weight"):
        CausalLM(config()).load_state_dict(names)


def test_unknown_fields_are_named() -> None:
    with pytest.raises(ValueError, match=r"CausalLMConfig: \['depth', 'size'\]; it has .*num_layers"):
        CausalLMConfig.from_dict({**config().to_dict(), "size": 1, "depth": 2})


def test_two_names_of_one_field() -> None:
    """Neither wins silently; where they agree there is nothing to say."""
    saved = config().to_dict()
    with pytest.raises(ValueError, match="num_layers=2 and n_layer=7 are two names of one setting of a CausalLMConfig"):
        CausalLMConfig.from_dict({**saved, "n_layer": 7})
    with pytest.raises(ValueError, match="n_layer=7 and num_layers=2 are two names"):
        CausalLMConfig.from_dict({"n_layer": 7, **saved})
    assert CausalLMConfig.from_dict({**saved, "n_layer": 2}) == config()
    with pytest.raises(ValueError, match="filter_order=8 and filter_width=9 are two names"):
        HyenaDNAConfig.from_dict({"filter_order": 8, "filter_width": 9})
    old = {**SIZES, "mixer": "hyena"}
    with pytest.raises(ValueError, match=r"operator\.filter_order=8 and width=9 are two names"):
        CausalLMConfig.from_dict({**old, "operator": {"filter_order": 8}, "filter": {"width": 9}})
    with pytest.raises(ValueError, match=r"operator\.emb_dim=5 and emb_dim=7 are two names"):
        CausalLMConfig.from_dict({**old, "operator": {"emb_dim": 5}, "filter": {"emb_dim": 7}})
    with pytest.raises(ValueError, match="short_taps=4 and short_filter_order=3 are two names"):
        CausalLMConfig.from_dict({**old, "operator": {"short_taps": 4, "short_filter_order": 3}})


def test_configs_of_the_first_version() -> None:
    old = {"vocab_size": 11, "l_max": 24, "d_model": 16, "n_layer": 2, "num_heads": 4, "d_inner": None, "dropout": 0.1}
    old |= {"tie_embeddings": True, "gradient_checkpointing": False}
    given = copy.deepcopy(old)
    hyena = CausalLMConfig.from_dict(
        {**old, "mixer": "hyena", "operator": {"order": 3, "filter_order": 8, "emb_dim": 5}, "filter": {}}
    )
    options = {"order": 3, "filter": {"class": "HyenaFilter", "width": 8, "emb_dim": 5}}
    assert hyena == config(dropout=0.1, mixer_options=options, mlp="gelu")
    smooth = CausalLMConfig.from_dict({**old, "mixer": "hyena", "operator": {}, "filter": {"freq": 1.0}})
    assert smooth == config(dropout=0.1, mixer_options={"filter": {"class": "HyenaFilter", "freq": 1.0}}, mlp="gelu")
    attention = CausalLMConfig.from_dict({**old, "mixer": "attention", "operator": {}, "filter": {}})
    assert attention == config(
        dropout=0.1, mixer="Attention", mixer_options={"num_heads": 4, "dropout": 0.1}, mlp="gelu"
    )
    assert old == given
    dna = HyenaDNAConfig.from_dict({"n_layer": 3, "n_classes": 4, "filter_order": 8, "short_filter_order": 2})
    assert dna == HyenaDNAConfig(num_layers=3, num_classes=4, filter_width=8, short_taps=2)
    assert HyenaDNA(HyenaDNAConfig.from_dict(dna.to_dict())).config == dna
