"""Parameter groups: who is in which, once each, whatever is wrapped around the model."""

from __future__ import annotations

import copy
import math
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from helpers.released import random_state
from hyena import HyenaFilter, HyenaOperator
from hyena.checkpoints import operator_from_safari
from hyena.checkpoints.safari.blocks import SafariOperator
from hyena.filters import ExponentialWindow, Filter, LearnedEncoding
from hyena.models import CausalLM, CausalLMConfig, HyenaDNA, HyenaDNAConfig
from hyena.optim import param_groups


def model(mlp: str = "swiglu", **operator: Any) -> CausalLM:
    sizes = {"vocab_size": 7, "l_max": 12, "d_model": 8, "num_layers": 2}
    return CausalLM(CausalLMConfig(**sizes, mixer_options=operator, mlp=mlp))


def with_table(mlp: str = "swiglu") -> CausalLM:
    """A model with trained positions and a trained window in its first block."""
    m = model(mlp)
    m.blocks[0].mixer.conv.filter = HyenaFilter(
        8, 12, encoding=LearnedEncoding(33, 12), window=ExponentialWindow(8, trainable=True)
    )
    return m


def by_group(m: nn.Module, groups: list[dict[str, Any]]) -> dict[str, set[str]]:
    """Names of the parameters in each group, after checking that each is in one group, once."""
    seen = [id(p) for g in groups for p in g["params"]]
    assert len(seen) == len(set(seen))
    assert set(seen) == {id(p) for p in m.parameters() if p.requires_grad}
    names = {id(p): name for name, p in m.named_parameters()}
    return {g["name"]: {names[id(p)] for p in g["params"]} for g in groups}


@pytest.mark.parametrize("mlp", ["gelu", "swiglu"])
def test_every_parameter_of_a_language_model(mlp: str) -> None:
    m = with_table(mlp=mlp)
    groups = by_group(m, param_groups(m, 1e-3, 0.1))
    layers = ["mixer.in_proj", "mixer.out_proj", "mlp.fc1", "mlp.fc2"] + ["mlp.gate"] * (mlp == "swiglu")
    assert groups["decay"] == {
        f"blocks.{i}.{name}" for i in (0, 1) for name in [f"{n}.weight" for n in layers] + ["mixer.short.weight"]
    }
    assert groups["encodings"] == {"blocks.0.mixer.conv.filter.encoding.table"}
    inside = {name for name, _ in m.named_parameters() if ".mixer.conv.filter." in name}
    assert groups["filters"] == inside - groups["encodings"]
    assert {"blocks.1.mixer.conv.filter.ffn.freq", "blocks.0.mixer.conv.filter.window.deltas"} < groups["filters"]
    assert groups["no_decay"] == {name for name, _ in m.named_parameters()} - set().union(
        groups["decay"], groups["filters"], groups["encodings"]
    )
    assert {"embedding.weight", "norm.weight", "blocks.0.mixer.conv.bias"} < groups["no_decay"]
    assert ("blocks.1.mlp.fc1.bias" in groups["no_decay"]) == (mlp == "gelu")


def test_rates_and_decay() -> None:
    def values(**rates: float) -> list[tuple[str, float, float]]:
        groups = param_groups(with_table(), 1e-3, 0.1, **rates)
        return [(g["name"], g["lr"], g["weight_decay"]) for g in groups]

    assert values() == [("decay", 1e-3, 0.1), ("no_decay", 1e-3, 0.0), ("filters", 1e-3, 0.0), ("encodings", 1e-5, 0.0)]
    assert values(filter_lr=5e-4, encoding_lr=0.0)[2:] == [("filters", 5e-4, 0.0), ("encodings", 0.0, 0.0)]


def test_an_optimizer_uses_them() -> None:
    m = with_table()
    optimizer = torch.optim.AdamW(param_groups(m, 1e-2, 0.5, encoding_lr=1e-7))
    before = {name: p.detach().clone() for name, p in m.named_parameters()}
    for p in m.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    moved = {name for name, p in m.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {
        name for name, p in m.named_parameters() if any(p is q for q in optimizer.param_groups[0]["params"])
    }
    for p in m.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()
    table, freq = "blocks.0.mixer.conv.filter.encoding.table", "blocks.1.mixer.conv.filter.ffn.freq"
    now = dict(m.named_parameters())
    assert (now[table] - before[table]).abs().max() < 1e-6
    assert (now[freq] - before[freq]).abs().min() > 1e-3
    state = optimizer.state_dict()
    torch.optim.AdamW(param_groups(m, 1e-2, 0.5)).load_state_dict(state)


class _Wrapper(nn.Module):
    """As DistributedDataParallel holds a model."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module


class _LowRank(nn.Module):
    """A linear layer with a trained low-rank addition."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.down = nn.Parameter(torch.randn(2, base.in_features))
        self.up = nn.Parameter(torch.zeros(base.out_features, 2))

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + x @ self.down.T @ self.up.T


@pytest.mark.parametrize(
    "wrap",
    [copy.deepcopy, _Wrapper, lambda m: torch.compile(m, backend="eager"), torch.optim.swa_utils.AveragedModel],
    ids=["deepcopy", "ddp", "compile", "ema"],
)
def test_wrapped_models_have_the_same_groups(wrap: Any) -> None:
    m = with_table()
    wrapped = wrap(m)
    groups = by_group(wrapped, param_groups(wrapped, 1e-3, 0.1))
    bare = {
        name: {n.removeprefix("module.").removeprefix("_orig_mod.") for n in names} for name, names in groups.items()
    }
    assert bare == by_group(m, param_groups(m, 1e-3, 0.1))


def test_low_rank_adapters() -> None:
    m = model().requires_grad_(False)
    mixer = m.blocks[0].mixer
    mixer.in_proj = _LowRank(mixer.in_proj)
    mixer.conv.filter.ffn.out = _LowRank(mixer.conv.filter.ffn.hidden[0])
    with pytest.warns(UserWarning, match="'no_decay' is empty"):
        groups = by_group(m, param_groups(m, 1e-3, 0.1))
    assert groups == {
        "decay": {f"blocks.0.mixer.in_proj.{name}" for name in ("down", "up")},
        "filters": {f"blocks.0.mixer.conv.filter.ffn.out.{name}" for name in ("down", "up")},
    }


def test_frozen_parameters_are_left_out() -> None:
    m = with_table()
    m.embedding.requires_grad_(False)
    m.blocks[0].mixer.conv.filter.encoding.requires_grad_(False)
    groups = by_group(m, param_groups(m, 1e-3, 0.1))
    assert "encodings" not in groups
    assert "embedding.weight" not in groups["no_decay"]
    with pytest.raises(ValueError, match="CausalLM has no parameter that requires a gradient"):
        param_groups(m.requires_grad_(False), 1e-3, 0.1)


class _Taps(nn.Module):
    """A filter of one's own: explicit taps, of two dimensions, and something that looks like an embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.taps = nn.Parameter(torch.randn(12, 8))
        self.scale = nn.Embedding(1, 8)

    def forward(self, length: int) -> Tensor:
        return (self.taps[:length] * self.scale.weight)[None]


def test_filters_of_ones_own() -> None:
    op = HyenaOperator(8, 12, filter=_Taps())
    groups = by_group(op, param_groups(op, 1e-3, 0.1))
    assert groups["filters"] == {"conv.filter.taps", "conv.filter.scale.weight"}
    inner = HyenaFilter(4, 12)
    alone = by_group(inner, _quietly(inner))
    assert alone["filters"] == {name for name, _ in inner.named_parameters()}


def test_shared_filters_and_tied_layers() -> None:
    m = model()
    m.blocks[1].mixer.conv.filter = m.blocks[0].mixer.conv.filter
    groups = by_group(m, param_groups(m, 1e-3, 0.1))
    assert all(name.startswith("blocks.0.") for name in groups["filters"])
    assert "embedding.weight" in groups["no_decay"]  # and the output layer that is tied to it
    # A filter's own layer, used by the model elsewhere, is still a filter's.
    outer = nn.ModuleList([nn.Linear(8, 8), HyenaOperator(8, 12)])
    outer[0].weight = outer[1].conv.filter.ffn.freq = nn.Parameter(torch.randn(8, 8))
    assert "0.weight" in by_group(outer, param_groups(outer, 1e-3, 0.1))["filters"]


def test_head_mixing_does_not_decay_from_the_identity() -> None:
    op = SafariOperator(8, 12, num_heads=2, post_order_ffn=True)
    assert "head_mixing" in by_group(op, param_groups(op, 1e-3, 0.1))["no_decay"]


def test_loaded_checkpoints() -> None:
    config = {"d_model": 6, "l_max": 20, "emb_dim": 5, "filter_order": 8, "num_blocks": 2}
    op = operator_from_safari(random_state(config), config)
    groups = by_group(op, param_groups(op, 1e-3, 0.1))
    assert groups["encodings"] == {"conv.filter.inner.encoding.table"}
    dna = HyenaDNA(HyenaDNAConfig(head="lm", l_max=20, d_model=8))
    assert len(by_group(dna, param_groups(dna, 1e-3, 0.1))["filters"]) == 2 * 8


def test_norms_of_any_shape_and_single_numbers_do_not_decay() -> None:
    norms = [nn.LayerNorm((3, 4)), nn.RMSNorm((3, 4)), nn.GroupNorm(2, 4), nn.BatchNorm2d(4)]
    m = nn.Sequential(nn.Linear(4, 4), nn.PReLU(), *norms)
    groups = by_group(m, _quietly(m))
    assert groups["decay"] == {"0.weight"}


def _quietly(m: nn.Module) -> list[dict[str, Any]]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return param_groups(m, 1e-3, 0.1)


def test_empty_groups_warn() -> None:
    plain = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4))
    for name in ("filter", "dynamics", "encoding"):
        with pytest.warns(UserWarning, match=rf"is empty: .*{name}_lr has no effect"):
            groups = param_groups(plain, 1e-3, 0.1, **{f"{name}_lr": 1e-4})
        assert [g["name"] for g in groups] == ["decay", "no_decay"]
    with pytest.warns(UserWarning, match="'decay' is empty"):
        param_groups(nn.Embedding(3, 4), 1e-3, 0.1)


def test_a_model_without_filters_is_no_reason_to_warn() -> None:
    """Nobody asked for a rate of theirs: an attention model has none."""
    attention = CausalLM(
        CausalLMConfig(
            vocab_size=5, l_max=8, d_model=8, num_layers=1, mixer="Attention", mixer_options={"num_heads": 2}
        )
    )
    plain = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for m in (attention, plain, model()):
            param_groups(m, 1e-3, 0.1)
        param_groups(with_table(), 1e-3, 0.1, filter_lr=1e-4, encoding_lr=1e-4)


@pytest.mark.parametrize("name", ["lr", "weight_decay", "filter_lr", "encoding_lr"])
def test_numbers_that_raise(name: str) -> None:
    for value in (-1, math.nan, math.inf):
        with pytest.raises(ValueError, match=f"{name} must be finite and not negative, got {value}"):
            param_groups(model(), **{"lr": 1e-3, "weight_decay": 0.1, name: value})
    for value in ("0.1", True, [1e-3], torch.ones(2)):
        with pytest.raises(TypeError, match=f"{name} must be a number, got "):
            param_groups(model(), **{"lr": 1e-3, "weight_decay": 0.1, name: value})


def test_weight_decay_has_a_default() -> None:
    decays = {g["name"]: g["weight_decay"] for g in param_groups(with_table(), lr=torch.tensor(1e-3))}
    assert decays == {"decay": 0.1, "no_decay": 0.0, "filters": 0.0, "encodings": 0.0}


class _Declares(nn.Module):
    """A mixer of one's own that says what of it does not decay."""

    no_decay = ("mixing", "gates", "not_there")

    def __init__(self) -> None:
        super().__init__()
        self.mixing = nn.Parameter(torch.eye(4))
        self.gates = nn.Linear(4, 4)
        self.out = nn.Linear(4, 4)


def test_modules_declare_what_does_not_decay() -> None:
    m = nn.Sequential(_Declares(), nn.Linear(4, 4))
    m[1].no_decay = nn.Linear(2, 2)  # a submodule of that name is none of it
    groups = by_group(m, _quietly(m))
    assert groups["decay"] == {"0.out.weight", "1.weight", "1.no_decay.weight"}
    assert {"0.mixing", "0.gates.weight"} < groups["no_decay"]


class _OwnFilter(Filter):
    def __init__(self) -> None:
        super().__init__(4, 12)
        self.taps = nn.Parameter(torch.randn(1, 12, 4))

    def forward(self, length: int) -> Tensor:
        return self.taps[:, :length]


def test_every_filter_is_one_wherever_it_is() -> None:
    m = nn.ModuleList([_OwnFilter(), nn.Linear(4, 4)])
    assert by_group(m, _quietly(m))["filters"] == {"0.taps"}
