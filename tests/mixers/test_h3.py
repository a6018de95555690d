"""H3: against dense matrices in each head, and against the authors' numbers."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor

from helpers.definitions import assert_close, assert_defined
from helpers.released import golden
from helpers.state_spaces import convolution
from hyena.filters import S4D, ExplicitFilter, ShiftSSM
from hyena.mixers import H3


def definition(layer: H3, u: Tensor) -> Tensor:
    """One head after the other, one product of a key's and a value's channel after the other."""
    length, e = u.size(1), layer.head_dim
    q, k, v = layer.in_proj(u).chunk(3, dim=2)
    k = convolution(layer.shift.filter.weight[0].T[:, :length], k) + layer.shift.bias[0] * k
    taps, y = layer.conv.filter.weight[0].T, torch.zeros_like(q)
    for m in range(layer.num_heads):
        for i in range(e):
            for j in range(e):
                outer = (k[..., m * e + i] * v[..., m * e + j])[..., None]
                outer = convolution(taps[m : m + 1, :length], outer) + layer.conv.bias[0, m] * outer
                y = y + torch.zeros_like(y).index_copy(2, torch.tensor([m * e + j]), q[..., m * e + i, None] * outer)
    return layer.out_proj(y)


@pytest.mark.parametrize("head_dim", [1, 3])
@pytest.mark.parametrize("length", [1, 9])
def test_is_its_matrices(length: int, head_dim: int):
    few, all_ = partial(ExplicitFilter, taps=4), ExplicitFilter
    layer = H3(6, 9, head_dim=head_dim, shift=few, filter=all_, dtype=torch.float64)
    assert_defined(layer, lambda u: definition(layer, u), length)


def test_is_the_authors():
    found = golden("h3_head1")
    want, grads = found.tensors, found.grads
    layer = H3(
        8, 33,
        shift=partial(ShiftSSM, state=8), filter=partial(S4D, modes=4, discretisation="bilinear"), dtype=torch.float64,
    )  # fmt: skip
    parts = [f"{name}_proj" for name in "qkv"]
    b, c = (torch.view_as_complex(want[f"param.kernel.kernel.{name}"]) for name in "BC")
    weights = {
        "in_proj.weight": torch.cat([want[f"param.{name}.weight"] for name in parts]),
        "in_proj.bias": torch.cat([want[f"param.{name}.bias"] for name in parts]),
        "out_proj.weight": want["param.output_linear.weight"],
        "out_proj.bias": want["param.output_linear.bias"],
        "shift.bias": want["param.ssm_k_D"],
        "shift.filter.B": want["param.ssm_k_kernel.kernel.B"],
        "shift.filter.C": want["param.ssm_k_kernel.kernel.C"],
        "conv.bias": want["param.D"],
        "conv.filter.log_dt": want["param.kernel.kernel.log_dt"],
        "conv.filter.log_decay": want["param.kernel.kernel.inv_A_real"],
        "conv.filter.frequency": want["param.kernel.kernel.A_imag"],
        "conv.filter.C": torch.view_as_real(b * c),
    }
    own = dict(layer.named_parameters())
    assert own.keys() == weights.keys()
    layer.load_state_dict({name: t.reshape(own[name].shape) for name, t in weights.items()})
    u = want["input"].clone().requires_grad_()
    y = layer(u)
    assert_close(y, want["output"])
    (y * want["probe"]).sum().backward()
    theirs = {
        "in_proj.weight": torch.cat([grads[f"{name}.weight"] for name in parts]),
        "in_proj.bias": torch.cat([grads[f"{name}.bias"] for name in parts]),
        "out_proj.weight": grads["output_linear.weight"],
        "out_proj.bias": grads["output_linear.bias"],
        "shift.bias": grads["ssm_k_D"],
        "shift.filter.B": grads["ssm_k_kernel.kernel.B"],
        "shift.filter.C": grads["ssm_k_kernel.kernel.C"],
        "conv.bias": grads["D"],
        "conv.filter.log_dt": grads["kernel.kernel.log_dt"],
        "conv.filter.log_decay": grads["kernel.kernel.inv_A_real"],
        "conv.filter.frequency": grads["kernel.kernel.A_imag"],
    }
    assert_close(u.grad, grads["input"], "u")
    for name, want_grad in theirs.items():
        assert_close(own[name].grad, want_grad.reshape(own[name].shape), name)
    # The state space's weight here is their B C, and both have a gradient: of B it is this one's times conj(C).
    of_b = torch.view_as_complex(own["conv.filter.C"].grad[0]) * c[0].conj()
    assert_close(torch.view_as_real(of_b), grads["kernel.kernel.B"], "B")
    state, out = layer.eval().init_state(2), []
    for t in range(33):
        y_t, state = layer.step(want["input"][:, t], state)
        out.append(y_t)
    assert_close(torch.stack(out, dim=1), want["output"])


def test_each_convolution_is_one_op_call():
    layer, calls = H3(6, 40), []

    class Count(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func.namespace == "hyena":
                calls.append(func._schema.name)
            return func(*args, **(kwargs or {}))

    with torch.no_grad(), Count():
        layer(torch.randn(2, 33, 6))
    assert len([name for name in calls if name.endswith(("gated_conv", "direct_conv"))]) == 2


def test_wrong_arguments():
    with pytest.raises(ValueError, match="d_model=10 is not a multiple of head_dim=4"):
        H3(10, 16, head_dim=4)
    with pytest.raises(ValueError, match="head_dim must be at least 1, got 0"):
        H3(10, 16, head_dim=0)
