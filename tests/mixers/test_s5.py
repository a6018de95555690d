"""S5: against its recurrence, its start against the matrix it comes from, the scan against a loop."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from helpers.definitions import assert_close, assert_defined
from hyena.filters._hippo import normal_part
from hyena.mixers import S5
from hyena.mixers._scan import scan
from hyena.optim import param_groups


def recurrence(layer: S5, u: Tensor) -> Tensor:
    """One position after another, with all N states of the real system: those kept and their conjugates."""
    s = layer.system
    a = torch.complex(-s.log_decay.exp(), s.angle)
    a, b = torch.cat([a, a.conj()]), torch.view_as_complex(s.b)
    b, step = torch.cat([b, b.conj()]), s.log_step.exp().repeat(2)
    if s.discretization == "zoh":
        pole, b = (a * step).exp(), (((a * step).exp() - 1) / a)[:, None] * b
    else:
        pole, b = (1 + a * step / 2) / (1 - a * step / 2), (step / (1 - a * step / 2))[:, None] * b
    y = s.d * u
    for i, order in enumerate([range(u.size(1)), range(u.size(1) - 1, -1, -1)][: s.c.size(0)]):
        c = torch.view_as_complex(s.c[i])
        c, x = torch.cat([c, c.conj()], dim=1), torch.zeros(u.size(0), a.size(0), dtype=a.dtype)
        out = {}
        for t in order:
            x = pole * x + u[:, t].to(a.dtype) @ b.T
            out[t] = (x @ c.T).real
        y = y + torch.stack([out[t] for t in range(u.size(1))], dim=1)
    g = F.gelu(y)
    return layer.out_proj(g * layer.gate(g).sigmoid())


@pytest.mark.parametrize("discretization", ["zoh", "bilinear"])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("length", [1, 7, 45])
def test_is_its_recurrence(length: int, causal: bool, discretization: str):
    layer = S5(6, state=8, blocks=2, causal=causal, discretization=discretization, dtype=torch.float64)
    assert_defined(layer, lambda u: recurrence(layer, u), length)


@pytest.mark.parametrize("chunk", [1, 2, 5, 32])
@pytest.mark.parametrize("length", [1, 2, 31, 70])
def test_scan_is_a_loop(length: int, chunk: int):
    if chunk == 1 and length > 2:
        chunk = 3
    log_pole = torch.complex(-torch.rand(4).double(), torch.randn(4).double())
    x, before = torch.randn(2, length, 4, dtype=torch.complex128), torch.randn(2, 4, dtype=torch.complex128)
    s, want = before, []
    for t in range(length):
        s = log_pole.exp() * s + x[:, t]
        want.append(s)
    assert_close(torch.view_as_real(scan(log_pole, x, before, chunk)), torch.view_as_real(torch.stack(want, dim=1)))


def test_starts_from_the_normal_part_of_hippo():
    """Written as in S4: A_nk = -sqrt((2n+1)(2k+1)) below the diagonal, -(n+1) on it, plus a product of rank 1."""
    n = torch.arange(8).double()
    a = -torch.sqrt((2 * n[:, None] + 1) * (2 * n + 1)).tril(-1) - torch.diag(n + 1)
    normal = a + torch.sqrt(n[:, None] + 0.5) * torch.sqrt(n + 0.5)
    frequency, basis = normal_part(4)
    poles = torch.complex(torch.full((4,), -0.5).double(), frequency)
    assert_close(2 * (basis.mH @ torch.diag(poles) @ basis).real, normal)
    layer = S5(4, state=16, blocks=2, dtype=torch.float64)
    assert_close(layer.system.angle.detach(), frequency.repeat(2))
    assert_close(layer.system.log_decay.exp().detach(), torch.full((8,), 0.5, dtype=torch.float64))
    # Inputs and outputs in the eigenvectors' coordinates: white in the real ones.
    b = torch.view_as_complex(S5(512, state=16, dtype=torch.float64).system.b.detach())
    assert (b @ b.mH - torch.eye(8)).abs().max() < 0.5


def test_weights_of_the_system_stay_float32_under_casts():
    layer = S5(8).bfloat16()
    assert {p.dtype for p in layer.system.parameters()} == {torch.float32}
    assert {p.dtype for p in S5(8, dtype=torch.float16).system.parameters()} == {torch.float32}
    assert layer(torch.randn(1, 5, 8).bfloat16()).dtype == torch.bfloat16


def test_poles_steps_and_inputs_train_slowly():
    layer = S5(8)
    groups = {g["name"]: g for g in param_groups(layer, 6e-3)}
    system = layer.system
    want = {id(p) for p in (system.log_decay, system.angle, system.log_step, system.b)}
    assert {id(p) for p in groups["dynamics"]["params"]} == want
    assert (groups["dynamics"]["lr"], groups["dynamics"]["weight_decay"]) == (1e-3, 0.0)


def test_wrong_arguments():
    with pytest.raises(ValueError, match=r"state=6 is not a multiple of 2 \* blocks=4"):
        S5(8, state=6, blocks=2)
    with pytest.raises(ValueError, match=r"discretization must be .*'zoh'.*'euler'"):
        S5(8, discretization="euler")
    with pytest.raises(ValueError, match=r"step_range .*\(0.1, 0.01\)"):
        S5(8, step_range=(0.1, 0.01))
    with pytest.raises(ValueError, match=r"step_range must be two positive numbers in order, got 1"):
        S5(8, step_range=1)
