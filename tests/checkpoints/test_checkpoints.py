"""Loading released operators: golden outputs and gradients, every setting against the definition, and what raises."""

from __future__ import annotations

import collections
import copy
import json
import pickle
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from helpers.released import OPERATORS, by_released_name, deviation, golden, layout_of, operator, random_state
from hyena import HyenaOperator
from hyena.checkpoints import operator_from_safari
from hyena.filters import LearnedEncoding, PositionalEncoding

BASE: dict[str, Any] = {"d_model": 6, "l_max": 40, "emb_dim": 5, "filter_order": 8, "w": 10}
# Settings, and the length of the input.
SETTINGS: list[tuple[dict[str, Any], int]] = [
    ({}, 40),
    ({"order": 4}, 17),
    ({"num_blocks": 4, "order": 3}, 40),
    ({"num_blocks": 4, "order": 3}, 28),
    ({"num_blocks": 2}, 38),
    ({"num_blocks": 5}, 5),
    ({"normalized": True, "order": 3}, 31),
    ({"normalized": True, "num_blocks": 2}, 30),
    ({"post_order_ffn": True, "order": 3}, 40),
    ({"modulate": False}, 40),
    ({"modulation_lr": 1e-3, "shift": 0.1, "order": 3}, 20),
    ({"bias": False}, 20),
    ({"activation": "gelu"}, 20),
    ({"num_inner_mlps": 0}, 40),
    ({"num_inner_mlps": 3, "short_filter_order": 5, "emb_dim": 9}, 40),
    ({"d_model": 1, "l_max": 2}, 1),
]


def gradients(op: HyenaOperator, u: Tensor, dy: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    u = u.clone().requires_grad_()
    y = op(u)
    y.backward(dy)
    return y.detach(), u.grad, {name: p.grad for name, p in op.named_parameters() if p.requires_grad}


def double(values: dict[str, Tensor], grad: bool = False) -> dict[str, Tensor]:
    return {name: t.clone().requires_grad_(grad) for name, t in values.items()}


@pytest.mark.parametrize("name", OPERATORS)
def test_golden_operators(name: str) -> None:
    g = golden(name)
    op = operator_from_safari(g.state, g.config, layout_of(name))
    assert op.training
    y, du, grads = gradients(op, g.tensors["input"], g.tensors["grad_output"])
    assert deviation(y, g.tensors["output"]) < 1e-10
    assert deviation(du, g.tensors["grad_input"]) < 1e-10
    ours = by_released_name(grads, g.config.get("order", 2), g.config["d_model"], layout_of(name))
    assert ours.keys() == g.grads.keys()
    for key, want in g.grads.items():
        assert deviation(ours[key], want) < 1e-10, key


@pytest.mark.parametrize("name", OPERATORS)
def test_the_definition_is_the_released_one(name: str) -> None:
    g = golden(name)
    assert deviation(operator(g.state, g.config, g.tensors["input"], layout_of(name)), g.tensors["output"]) < 1e-10


@pytest.mark.parametrize(("settings", "length"), SETTINGS)
def test_every_setting_against_the_definition(settings: dict[str, Any], length: int) -> None:
    config = BASE | settings
    state = double(random_state(config), grad=True)
    u, dy = torch.randn(2, length, config["d_model"]).double(), torch.randn(2, length, config["d_model"]).double()
    op = operator_from_safari({name: t.detach() for name, t in state.items()}, config)
    y, du, grads = gradients(op, u, dy)

    u.requires_grad_()
    want = operator(state, config, u)
    want.backward(dy)
    assert deviation(y, want) < 1e-10
    assert deviation(du, u.grad) < 1e-10
    for key, g in by_released_name(grads, config.get("order", 2), config["d_model"], "safari").items():
        assert deviation(g, state[key].grad) < 1e-10, key

    op.eval()
    with torch.no_grad():
        for _ in range(2):
            assert deviation(op(u), want) < 1e-10


@pytest.mark.parametrize("length", [4, 26, 74, 80])
def test_blocks_of_any_length_in_eval(length: int) -> None:
    """A block's taps depend on its length: no spectrum of one length may serve another."""
    config = BASE | {"l_max": 80, "num_blocks": 2}
    state = random_state(config)
    op = operator_from_safari(state, config).eval()
    with torch.no_grad():
        for size in (80, length):
            u = torch.randn(1, size, 6).double()
            assert deviation(op(u), operator(state, config, u)) < 1e-10


def test_blocks_see_the_future_inside_a_block_only() -> None:
    config = BASE | {"num_blocks": 4}
    op = operator_from_safari(random_state(config), config)
    u = torch.randn(1, 40, 6).double().requires_grad_()
    (du,) = torch.autograd.grad(op(u)[0, 12].sum(), u)
    seen = du[0].abs().sum(1) > 0
    assert seen[13:20].all()
    assert not seen[20:].any()


def test_layouts_differ_from_order_3_on() -> None:
    config = BASE | {"order": 3}
    state, u = random_state(config), torch.randn(1, 20, 6).double()
    a, b = (operator_from_safari(state, config, layout)(u) for layout in ("safari", "standalone"))
    assert deviation(a, b) > 1e-3
    assert deviation(b, operator(state, config, u, "standalone")) < 1e-10


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_keep_their_dtype(dtype: torch.dtype) -> None:
    state, u = random_state(BASE), torch.randn(2, 33, 6)
    op = operator_from_safari({name: t.to(dtype) for name, t in state.items()}, BASE)
    assert {p.dtype for p in op.conv.filter.parameters()} == {torch.float32}
    assert {p.dtype for name, p in op.named_parameters() if not name.startswith("conv.filter.")} == {dtype}
    want = operator({name: t.to(dtype).double() for name, t in state.items()}, BASE, u.to(dtype).double())
    assert deviation(op(u.to(dtype)), want) < (1e-5 if dtype == torch.float32 else 0.05)


def test_prefixes_wrappers_and_entries() -> None:
    config, state = BASE, random_state(BASE)
    u = torch.randn(1, 12, 6).double()
    want = operator_from_safari(state, config)(u)
    for prefix in ("module.", "_orig_mod.", "model.backbone.layers.3.mixer.", "model.layers.0.mixer.layer."):
        held = {"epoch": 3, "state_dict": {prefix + name: t for name, t in state.items()}}
        held["state_dict"]["train_torchmetrics.num-tokens.count"] = torch.tensor(7)
        assert torch.equal(operator_from_safari(held, config)(u), want)


def test_from_files(tmp_path: Path) -> None:
    state = random_state(BASE)
    want = operator_from_safari(state, BASE)(torch.ones(1, 9, 6).double())
    (tmp_path / "config.json").write_text(json.dumps(BASE))
    unshared = {name: t.clone() for name, t in state.items()}
    save_file(unshared, tmp_path / "operator.safetensors")
    torch.save({"state_dict": state}, tmp_path / "operator.ckpt")
    torch.save(state, tmp_path / "operator.bin")
    for name in ("operator.safetensors", "operator.ckpt", "operator.bin"):
        op = operator_from_safari(str(tmp_path / name), tmp_path / "config.json")
        assert torch.equal(op(torch.ones(1, 9, 6).double()), want)


def test_safetensors_is_asked_for_when_it_is_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_file({name: t.clone() for name, t in random_state(BASE).items()}, tmp_path / "operator.safetensors")
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    operator_from_safari(random_state(BASE), BASE)
    with pytest.raises(ModuleNotFoundError, match="pip install safetensors"):
        operator_from_safari(tmp_path / "operator.safetensors", BASE)


class _Settings:
    """Something that a checkpoint may hold and weights_only does not load."""


def test_pickled_objects_are_refused(tmp_path: Path) -> None:
    torch.save({"state_dict": random_state(BASE), "hyper_parameters": _Settings()}, tmp_path / "weights.ckpt")
    with pytest.raises(ValueError, match=r"pickled Python objects.*weights_only=False"):
        operator_from_safari(tmp_path / "weights.ckpt", BASE)


def test_keys_that_do_not_fit_are_listed() -> None:
    state = random_state(BASE)
    del state["in_proj.bias"], state["filter_fn.implicit_filter.2.weight"]
    state |= {"gate.weight": torch.ones(1), "filter_fn.rotary": torch.ones(1)}
    state["out_proj.bias"] = torch.ones(7)
    with pytest.raises(ValueError, match="the checkpoint does not fit its config") as caught:
        operator_from_safari(state, BASE)
    message = str(caught.value)
    assert "keys that fit nowhere: filter_fn.rotary, gate.weight" in message
    assert "missing keys: filter_fn.implicit_filter.2.weight, in_proj.bias" in message
    assert "out_proj.bias is (7,), the config makes it (6,)" in message


def test_no_tensors_and_several_operators() -> None:
    with pytest.raises(ValueError, match=r"no tensors: in_proj\.weight"):
        operator_from_safari({"in_proj.weight": [1.0]}, BASE)
    two = {f"layers.{i}.{name}": t for i in range(2) for name, t in random_state(BASE).items()}
    with pytest.raises(ValueError, match=r"holds 2 operators \(layers\.0, layers\.1\)"):
        operator_from_safari(two, BASE)
    with pytest.raises(ValueError, match="both named"):
        operator_from_safari({**random_state(BASE), "module.in_proj.bias": torch.ones(18)}, BASE)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"filter_args": {}, "heads": 2}, "unknown keys .*: filter_args, heads"),
        ({"num_heads": 2}, "num_heads=2 cannot be loaded, only 1"),
        ({"inner_factor": 2}, "inner_factor=2 cannot be loaded"),
        ({"outer_mixing": True}, "outer_mixing=True cannot be loaded"),
        ({"filter_cls": "s4d"}, "filter_cls='s4d' cannot be loaded"),
        ({"_name_": "mha"}, "_name_='mha' cannot be loaded"),
        ({"activation": "glu"}, "activation='glu' cannot be loaded"),
        ({"order": 1}, "order=1"),
        ({"local_order": 5}, "local_order=5 has no effect .* short_filter_order=3"),
        ({"l_max": 64}, "l_max=40, the config says l_max=64"),
        ({"positions": "frozen"}, "unknown keys"),
    ],
)
def test_settings_that_raise(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        operator_from_safari(random_state(BASE), BASE | settings)


@pytest.mark.parametrize("key", ["num_blocks", "num_heads", "short_filter_order", "post_order_ffn", "normalized"])
def test_the_standalone_operator_reads_fewer_settings(key: str) -> None:
    with pytest.raises(ValueError, match=f"{key}=4 cannot be loaded.*standalone operator does not"):
        operator_from_safari(random_state(BASE), BASE | {key: 4}, "standalone")


def test_other_errors() -> None:
    with pytest.raises(ValueError, match="layout must be one of"):
        operator_from_safari(random_state(BASE), BASE, "hyena")
    with pytest.raises(ValueError, match="needs d_model and l_max"):
        operator_from_safari(random_state(BASE), {"order": 2})
    state = random_state(BASE)
    state["filter_fn.implicit_filter.3.freq"] = torch.ones(1, 8).double()
    with pytest.raises(ValueError, match="differs from that of other layers"):
        operator_from_safari(state, BASE)


def test_settings_without_effect_are_accepted() -> None:
    config = BASE | {"_name_": "hyena", "local_order": 3, "lr": 6e-4, "wd": 0.1, "fused_fft_conv": True, "layer_idx": 1}
    u = torch.randn(1, 12, 6).double()
    state = random_state(BASE)
    assert torch.equal(operator_from_safari(state, config)(u), operator_from_safari(state, BASE)(u))


def test_what_can_be_computed_may_be_missing() -> None:
    config = BASE | {"order": 3, "lr_pos_emb": 0.0}
    state = random_state(config)
    op = operator_from_safari(state, config)
    less = {
        name: t
        for name, t in state.items()
        if "pos_emb" not in name and "deltas" not in name and not name.endswith(("3.freq", "5.freq"))
    }
    u = torch.randn(1, 40, 6).double()
    # The deltas of random_state are rounded to 4 digits.
    assert deviation(operator_from_safari(less, config)(u), op(u)) < 1e-4


class TestPositions:
    def trained(self) -> dict[str, Tensor]:
        state = random_state(BASE)
        state["filter_fn.pos_emb.z"] += 0.1 * torch.randn_like(state["filter_fn.pos_emb.z"])
        return state

    def test_a_parameter_if_the_released_code_trains_them(self) -> None:
        for config in (BASE, BASE | {"lr_pos_emb": 1e-4}, BASE | {"lr_pos_emb": None}):
            table = operator_from_safari(random_state(BASE), config).conv.filter.encoding.table
            assert table.requires_grad
            assert table.shape == (40, 5)

    def test_computed_if_it_does_not(self) -> None:
        config = BASE | {"lr_pos_emb": 0.0}
        state = random_state(config)
        state["filter_fn.pos_emb.z"] = state["filter_fn.pos_emb.z"].float().double()
        op = operator_from_safari(state, config)
        assert isinstance(op.conv.filter.encoding, PositionalEncoding)
        u = torch.randn(1, 40, 6).double()
        assert deviation(op(u), operator(state, config, u)) < 1e-5
        kept = operator_from_safari(state, config, learned_encoding=True)
        assert kept.conv.filter.encoding.table.requires_grad
        assert deviation(kept(u), operator(state, config, u)) < 1e-10

    def test_a_trained_table_that_is_frozen_now(self) -> None:
        config, state = BASE | {"lr_pos_emb": 0.0}, self.trained()
        op = operator_from_safari(state, config)
        assert isinstance(op.conv.filter.encoding, LearnedEncoding)
        assert not op.conv.filter.encoding.table.requires_grad
        u = torch.randn(1, 40, 6).double()
        assert deviation(op(u), operator(state, config, u)) < 1e-10

    def test_computed_on_request_only_if_that_changes_nothing(self) -> None:
        op = operator_from_safari(random_state(BASE), BASE, learned_encoding=False)
        assert isinstance(op.conv.filter.encoding, PositionalEncoding)
        with pytest.raises(ValueError, match="have been trained"):
            operator_from_safari(self.trained(), BASE, learned_encoding=False)


def test_loading_draws_no_random_numbers_and_shares_no_memory() -> None:
    state = random_state(BASE)
    before = {name: t.clone() for name, t in state.items()}
    torch.manual_seed(5)
    op = operator_from_safari(state, BASE)
    drawn = torch.rand(())
    torch.manual_seed(5)
    assert torch.equal(drawn, torch.rand(()))
    with torch.no_grad():
        for p in op.parameters():
            p.zero_()
    assert all(torch.equal(state[name], t) for name, t in before.items())


@pytest.mark.parametrize("settings", [{}, {"num_blocks": 2, "normalized": True}, {"modulate": False}])
def test_a_loaded_operator_is_like_any_other(settings: dict[str, Any]) -> None:
    config = BASE | settings
    op = operator_from_safari(random_state(config), config).eval()
    u = torch.randn(1, 20, 6).double()
    copied = copy.deepcopy(op)
    sent = pickle.loads(pickle.dumps(op))
    again = operator_from_safari(random_state(config), config)
    again.load_state_dict(collections.OrderedDict(op.state_dict()))
    for other in (copied, sent, again):
        assert torch.equal(other(u), op(u))
    again.reset_parameters()
    assert again(u).isfinite().all()
    v = op.in_proj(u)
    assert deviation(_by_matrix(op, u, v), op(u)) < 1e-10


def _by_matrix(op: HyenaOperator, u: Tensor, z: Tensor) -> Tensor:
    v = op.short(z).split(op.width, dim=2)[-1]
    return op.out_proj(torch.einsum("bcts,bsc->btc", op.to_matrix(u), v))
