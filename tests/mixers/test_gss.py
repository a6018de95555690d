"""GSS: against a dense matrix, and against the numbers of an implementation of the paper."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from helpers.definitions import assert_close, assert_defined
from helpers.released import golden
from helpers.state_spaces import convolution
from hyena.filters import ExplicitFilter
from hyena.mixers import GSS
from hyena.mixers.gss import FILTER


def definition(layer: GSS, u: Tensor) -> Tensor:
    wide = layer.gate_channels
    weight, bias = layer.in_proj.weight, layer.in_proj.bias
    gate, v = F.gelu(u @ weight[:wide].T + bias[:wide]), F.gelu(u @ weight[wide:].T + bias[wide:])
    v = F.layer_norm(v, v.shape[-1:], layer.norm.weight, layer.norm.bias)
    y = convolution(layer.conv.filter.weight[0].T[:, : u.size(1)], v) + layer.conv.bias[0] * v
    return layer.out_proj(gate * (y @ layer.gate.weight.T))


@pytest.mark.parametrize("length", [1, 9])
def test_is_its_matrix(length: int):
    layer = GSS(6, 9, conv_channels=3, gate_channels=7, filter=ExplicitFilter, dtype=torch.float64)
    assert_defined(layer, lambda u: definition(layer, u), length)


def test_is_the_released_one():
    """Its block is ours with a norm before and a residual."""
    found = golden("gss")
    want, grads = found.tensors, found.grads
    layer = GSS(8, 31, conv_channels=6, gate_channels=16, filter=partial(FILTER, modes=7), dtype=torch.float64)
    c = torch.stack([want["param.dss.C_real"], want["param.dss.C_imag"]], dim=-1)
    weights = {
        "in_proj.weight": torch.cat([want["param.to_u.0.weight"], want["param.to_v.0.weight"]]),
        "in_proj.bias": torch.zeros(22),
        "norm.weight": want["param.dss.norm.weight"],
        "norm.bias": want["param.dss.norm.bias"],
        "conv.bias": want["param.dss.param_D"],
        "conv.filter.W": c,
        "conv.filter.decay": want["param.dss.Lambda_real"],
        "conv.filter.frequency": want["param.dss.Lambda_imag"],
        "gate.weight": want["param.to_gate.weight"],
        "out_proj.weight": want["param.to_out.weight"],
        "out_proj.bias": want["param.to_out.bias"],
    }
    own = dict(layer.named_parameters())
    assert own.keys() == weights.keys()
    layer.load_state_dict({name: t.reshape(own[name].shape) for name, t in weights.items()})
    x = want["input"].clone().requires_grad_()
    y = x + layer(F.layer_norm(x, (8,), want["param.norm.weight"], want["param.norm.bias"]))
    assert_close(y, want["output"])
    (y * want["probe"]).sum().backward()
    assert_close(x.grad, grads["input"], "u")
    theirs = {
        "in_proj.weight": torch.cat([grads["to_u.0.weight"], grads["to_v.0.weight"]]),
        "norm.weight": grads["dss.norm.weight"],
        "norm.bias": grads["dss.norm.bias"],
        "conv.bias": grads["dss.param_D"],
        "conv.filter.W": torch.stack([grads["dss.C_real"], grads["dss.C_imag"]], dim=-1),
        "conv.filter.decay": grads["dss.Lambda_real"],
        "conv.filter.frequency": grads["dss.Lambda_imag"],
        "gate.weight": grads["to_gate.weight"],
        "out_proj.weight": grads["to_out.weight"],
        "out_proj.bias": grads["to_out.bias"],
    }
    for name, want_grad in theirs.items():
        assert_close(own[name].grad, want_grad.reshape(own[name].shape), name)


def test_wrong_arguments():
    for few in (0, 1):  # the norm of one channel is a constant
        with pytest.raises(ValueError, match=f"conv_channels must be at least 2, got {few}"):
            GSS(8, 16, conv_channels=few)
    with pytest.raises(TypeError, match=r"gate_channels must be an integer, got 2\.5"):
        GSS(8, 16, gate_channels=2.5)
