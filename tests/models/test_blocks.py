"""Parts of models by definition: RMSNorm in both forms, the gated MLP, and a block made of them."""

from __future__ import annotations

import functools

import pytest
import torch
from torch import nn

from helpers.definitions import assert_close
from hyena.models import Block, GatedMLP, RMSNorm


@pytest.mark.parametrize("inside", [True, False])
def test_rms_norm(inside: bool) -> None:
    norm = RMSNorm(6, 0.3, eps_inside=inside, dtype=torch.float64)
    nn.init.normal_(norm.weight)
    x = torch.randn(2, 5, 6, dtype=torch.float64, requires_grad=True)
    rms = (x**2).sum(-1, keepdim=True).div(6).sqrt()
    want = norm.weight * x / ((rms**2 + 0.3).sqrt() if inside else rms + 0.3)
    got, probe = norm(x), torch.randn(2, 5, 6, dtype=torch.float64)
    assert_close(got, want, "norm")
    grads = [torch.autograd.grad((y * probe).sum(), (x, norm.weight)) for y in (got, want)]
    for a, b in zip(*grads, strict=True):
        assert_close(a, b, "gradient")
    if inside:
        native = nn.RMSNorm(6, 0.3, dtype=torch.float64)
        native.load_state_dict(norm.state_dict())
        assert_close(got, native(x), "torch's")


@pytest.mark.parametrize("inside", [True, False])
def test_rms_norm_of_nothing_and_of_low_precision(inside: bool) -> None:
    norm = RMSNorm(8, 1e-6, eps_inside=inside)
    x = torch.zeros(3, 8, requires_grad=True)
    y = norm(x)
    y.sum().backward()
    assert not y.any()
    assert x.grad.isfinite().all()
    x = 300 * torch.randn(3, 8)  # their squares are beyond float16's range
    want = norm(x)
    got = norm.half()(x.half())
    assert got.dtype == torch.float16
    assert (got.float() - want).abs().max() < 2e-3 * want.abs().max()


@pytest.mark.parametrize("activation", ["silu", "gelu", None])
def test_gated_mlp(activation: str | None) -> None:
    mlp = GatedMLP(5, 7, activation=activation, bias=True, dtype=torch.float64)
    x = torch.randn(3, 5, dtype=torch.float64)
    gate = x @ mlp.gate.weight.T + mlp.gate.bias
    if activation == "silu":
        gate = gate / (1 + torch.exp(-gate))
    elif activation == "gelu":
        gate = gate * 0.5 * (1 + torch.erf(gate / 2**0.5))
    want = (gate * (x @ mlp.fc1.weight.T + mlp.fc1.bias)) @ mlp.fc2.weight.T + mlp.fc2.bias
    assert_close(mlp(x), want, "mlp")
    with pytest.raises(ValueError, match="'swish'"):
        GatedMLP(5, 7, activation="swish")


@pytest.mark.parametrize("name", ["gelu", "gelu_tanh", "geglu", "swiglu"])
def test_mlps_by_name(name: str) -> None:
    x = torch.randn(3, 16, dtype=torch.float64)
    for d_inner in (None, 10):
        block = Block(nn.Identity(), 16, mlp=name, d_inner=d_inner, dtype=torch.float64)
        weights = {key: p.detach() for key, p in block.mlp.named_parameters()}
        hidden = x @ weights["fc1.weight"].T + weights.get("fc1.bias", 0.0)
        on = x @ weights["gate.weight"].T if "glu" in name else hidden
        if name == "gelu_tanh":
            on = on * 0.5 * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (on + 0.044715 * on**3)))
        elif name == "swiglu":
            on = on / (1 + torch.exp(-on))
        else:
            on = on * 0.5 * (1 + torch.erf(on / 2**0.5))
        hidden = on * hidden if "glu" in name else on
        assert_close(block.mlp(x), hidden @ weights["fc2.weight"].T + weights.get("fc2.bias", 0.0), name)
        inner = d_inner or {"gelu": 64, "gelu_tanh": 64, "geglu": 48, "swiglu": 48}[name]  # 8 / 3 of 16 is 42.7
        assert weights["fc1.weight"].shape == (inner, 16)
        assert ("fc1.bias" in weights) == ("glu" not in name)


@pytest.mark.parametrize("width", [1, 8, 24, 128, 768, 4096])
def test_a_gated_mlp_has_as_many_weights_as_a_plain_one(width: int) -> None:
    gated, plain = (Block(nn.Identity(), width, mlp=name, device="meta").mlp for name in ("swiglu", "gelu"))
    more = sum(p.numel() for p in gated.parameters() if p.dim() == 2) - 8 * width**2
    assert 0 <= more < 3 * 8 * width  # less than eight more inner channels
    assert sum(p.numel() for p in plain.parameters() if p.dim() == 2) == 8 * width**2


def test_mlps_that_cannot_be() -> None:
    with pytest.raises(ValueError, match="mlp must be one of gelu, gelu_tanh, geglu, swiglu, got 'relu'"):
        Block(nn.Identity(), 6, mlp="relu")
    with pytest.raises(ValueError, match="d_inner=12 is for an MLP by name; this GatedMLP has its own"):
        Block(nn.Identity(), 6, mlp=GatedMLP(6, 9), d_inner=12)


def test_a_block_of_them() -> None:
    norm = functools.partial(RMSNorm, eps_inside=False)
    block = Block(nn.Identity(), 6, norm_eps=0.1, norm=norm, mlp=GatedMLP(6, 9))
    assert block.norm1.eps == 0.1
    x = torch.randn(2, 4, 6)
    y = x + block.norm1(x)
    assert torch.allclose(block(x), y + block.mlp(block.norm2(y)))
    block.to_empty(device="cpu")
    block.mixer = nn.Linear(6, 6)
    block.reset_parameters()
    assert all(p.isfinite().all() for p in block.parameters())
