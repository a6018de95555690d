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
