"""The projection's bias, added by the mixing step where kernels on a GPU can: what that must not change.

On other machines the same code runs on whatever implements the ops there.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from unittest import mock

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from helpers.cases import make_mask, offsets, rand
from helpers.operators import D, build, expected
from helpers.tolerances import TOLERANCE
from hyena import HyenaOperator, ops
from hyena.mixers import hyena as operator

projections = importlib.import_module("hyena.ops.project")  # ops.project is the function


def _always(u: Tensor) -> bool:
    return True


@pytest.fixture
def apart() -> Iterator[mock.Mock]:
    """Has the mixing step add the bias, and counts the biases."""
    with (
        mock.patch.object(projections, "is_bias_left", _always),
        mock.patch.object(operator.ops, "recurrence", wraps=ops.recurrence) as recurrence,
    ):
        yield recurrence


def biases(recurrence: mock.Mock) -> list[Tensor | None]:
    return [call.args[7] for call in recurrence.call_args_list]


def gradients(m: HyenaOperator, y: Tensor, u: Tensor) -> list[Tensor]:
    return torch.autograd.grad(y.square().sum(), [u, *(p for p in m.parameters() if p.numel() > 0)])


@pytest.mark.parametrize("mask", ["none", "random", "left"])
@pytest.mark.parametrize("config", ["default", "order-1", "order-3", "two-sided", "groups", "short-1", "short-7"])
def test_outputs_and_gradients(config: str, mask: str, apart: mock.Mock) -> None:
    m, u = build(config).double(), rand(2, 37, D).requires_grad_()
    keep = make_mask(mask, 2, 37)
    got, want = m(u, keep), expected(m, u, keep)
    assert biases(apart) == [m.in_proj.bias]
    limit = TOLERANCE[torch.float64] * 10
    torch.testing.assert_close(got, want, rtol=limit, atol=limit * want.abs().max().item())
    for g, w in zip(gradients(m, got, u), gradients(m, want, u), strict=True):
        torch.testing.assert_close(g, w, rtol=limit, atol=limit * w.abs().max().item())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_packed_rows_and_autocast(dtype: torch.dtype, apart: mock.Mock) -> None:
    m, u, at = build("default"), rand(1, 60, D).float(), offsets([33, 0, 27])
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        got = m(u, cu_seqlens=at, max_seqlen=33)
        assert biases(apart) == [m.in_proj.bias]
        got.float().sum().backward()
    assert m.in_proj.bias.grad.dtype == torch.float32
    with torch.no_grad():
        wide = u.double()
        want = torch.cat([expected(m.double(), wide[:, a:b]) for a, b in ((0, 33), (33, 60))], dim=1)
    torch.testing.assert_close(got.double(), want, rtol=0, atol=200 * TOLERANCE[dtype] * want.abs().max().item())


class Shifted(nn.Module):
    """A parametrisation."""

    def forward(self, weight: Tensor) -> Tensor:
        return weight + 1


def test_layers_that_do_more_are_called(apart: mock.Mock) -> None:
    m, u = build("default").double(), rand(2, 37, D)
    handle = m.in_proj.register_forward_hook(lambda module, inputs, output: 2 * output)
    got = m(u)
    handle.remove()
    twice = build("default").double()
    twice.load_state_dict(m.state_dict())
    with torch.no_grad():
        twice.in_proj.weight *= 2
        twice.in_proj.bias *= 2
    torch.testing.assert_close(got, expected(twice, u))
    parametrize.register_parametrization(m.in_proj, "weight", Shifted())
    torch.testing.assert_close(m(u), expected(m, u))
    assert biases(apart) == [None, None]


@pytest.mark.parametrize("config", ["no-bias", "heads", "blocks"])
def test_where_there_is_none_to_add(config: str, apart: mock.Mock) -> None:
    m, u = build(config).double(), rand(2, 38, D)
    torch.testing.assert_close(m(u), expected(m, u))
    assert biases(apart) in ([None], [])


def test_in_one_graph() -> None:
    m = build("default")
    torch._dynamo.reset()
    with mock.patch.object(projections, "is_bias_left", _always):
        compiled = torch.compile(m, fullgraph=True, backend="aot_eager")
        for length in (40, 50, 60):
            u = rand(2, length, D).float().requires_grad_()
            y, want = compiled(u), m(u)
            torch.testing.assert_close(y, want, rtol=1e-4, atol=1e-5)
            for g, w in zip(gradients(m, y, u), gradients(m, want, u), strict=True):
                torch.testing.assert_close(g, w, rtol=1e-4, atol=1e-5 * max(1.0, w.abs().max().item()))
    torch._dynamo.reset()


def test_only_a_gpu_with_kernels_has_it_so(device: str) -> None:
    u = torch.zeros(1, 64, D, device=device)
    assert projections.is_bias_left(u) == (device == "cuda" and ops.has_kernel("recurrence", u.device))
    assert not projections.is_bias_left(u.double())
    assert not projections.is_bias_left(u[:, :32])
