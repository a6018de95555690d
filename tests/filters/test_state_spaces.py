"""State-space filters against released numbers, dense matrices and long rows; what the contract does not show."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from helpers.released import deviation, golden
from helpers.state_spaces import check_against_dense, discretised, impulse_response
from hyena import HyenaOperator, param_groups
from hyena.conv import LongConv
from hyena.filters import DLR, EMA, S4D, ExplicitFilter, Filter, ModalFilter, ShiftSSM

EXACT = 1e-9


def load(h: nn.Module, **values: Tensor) -> None:
    with torch.no_grad():
        for name, value in values.items():
            p = getattr(h, name)
            p.copy_(value.view_as(p))


def taps(h: Filter, length: int) -> Tensor:
    """Of the first filter, ``(G, length)``."""
    return h(length)[0].mT


# Released numbers.


def test_s4d_as_released() -> None:
    want = golden("s4d").tensors
    h = S4D(6, 500, modes=8, dtype=torch.float64)
    weights = {name: want[f"param.kernel.{name}"] for name in ("log_dt", "log_A_real", "A_imag", "C")}
    load(h, log_dt=weights["log_dt"], log_decay=weights["log_A_real"], frequency=weights["A_imag"], C=weights["C"])
    assert deviation(taps(h, 50), want["taps"]) < EXACT
    assert deviation(taps(h, 500), want["taps_long"]) < EXACT
    # The layer around it, for the gradients: GELU, a product over the channels, GLU.
    conv = LongConv(6, 500, filter=h, dtype=torch.float64)
    load(conv, bias=want["param.D"])
    x = want["input"].clone().requires_grad_()
    y = nn.functional.gelu(conv(x.mT).mT)
    y = nn.functional.conv1d(y, want["param.output_linear.0.weight"], want["param.output_linear.0.bias"])
    y = nn.functional.glu(y, dim=1)
    assert deviation(y, want["output"]) < EXACT
    (y * want["probe"]).sum().backward()
    assert deviation(x.grad, want["grad.input"]) < EXACT
    assert deviation(conv.bias.grad[0], want["grad.D"]) < EXACT
    pairs = {"log_dt": "log_dt", "log_decay": "log_A_real", "frequency": "A_imag", "C": "C"}
    for name, released in pairs.items():
        assert deviation(getattr(h, name).grad[0], want[f"grad.kernel.{released}"]) < EXACT, name


def test_the_ssms_of_h3_as_released() -> None:
    want = golden("h3_head1").tensors
    shift = ShiftSSM(8, 33, state=8, dtype=torch.float64)
    load(shift, B=want["param.ssm_k_kernel.kernel.B"], C=want["param.ssm_k_kernel.kernel.C"])
    assert deviation(taps(shift, 33), want["taps.shift"][:, :8]) < EXACT
    assert (want["taps.shift"][:, 8:].abs() < 1e-12).all()
    h = S4D(8, 33, modes=4, discretisation="bilinear", dtype=torch.float64)
    b, c = (torch.view_as_complex(want[f"param.kernel.kernel.{name}"]) for name in "BC")
    load(
        h,
        log_dt=want["param.kernel.kernel.log_dt"],
        log_decay=want["param.kernel.kernel.inv_A_real"],
        frequency=want["param.kernel.kernel.A_imag"],
        C=torch.view_as_real(b * c),
    )
    assert deviation(taps(h, 33), want["taps.diag"]) < EXACT


@pytest.mark.parametrize("name", ["causal", "causal_truncated16", "bi"])
def test_the_moving_average_of_mega_as_released(name: str) -> None:
    found = golden(f"mega_ema_{name}")
    want, causal = found.tensors, not found.config["bidirectional"]
    h = EMA(5, 37, modes=3, causal=causal, truncation=found.config["truncation"], dtype=torch.float64)
    parts = ("delta", "alpha", "beta", "gamma")
    load(h, **{part: want[f"param.{part}"] for part in parts})
    if causal:
        assert deviation(taps(h, 37), want["taps"]) < EXACT
    else:
        lags = taps(h, 37)
        ahead, behind = want["taps"][:5], want["taps"][5:]
        assert deviation(lags[:, 37:], ahead[:, 1:]) < EXACT
        assert deviation(lags[:, :36].flip(1), behind[:, 1:]) < EXACT
        assert deviation(lags[:, 36], ahead[:, 0] + behind[:, 0]) < EXACT
    conv = LongConv(5, 37, filter=h, causal=causal, dtype=torch.float64)
    load(conv, bias=want["param.omega"])
    x = want["input"].transpose(0, 1).clone().requires_grad_()
    y = nn.functional.silu(conv(x)).transpose(0, 1)
    assert deviation(y, want["output"]) < EXACT
    (y * want["probe"]).sum().backward()
    assert deviation(x.grad.transpose(0, 1), want["grad.input"]) < EXACT
    assert deviation(conv.bias.grad[0], want["grad.omega"]) < EXACT
    for part in parts:
        assert deviation(getattr(h, part).grad.flatten(), want[f"grad.{part}"].flatten()) < EXACT, part
    if "state_final" in want:  # of states that the input enters with weight p beta
        online = conv.online([5], 37)
        (memory,) = online.allocate(2)
        with torch.no_grad():
            got = online.extend(0, memory, 0, want["input"].transpose(0, 1))
            scale = torch.sigmoid(h.delta[0]) * h.beta[0]
        assert deviation(nn.functional.silu(got).transpose(0, 1), want["output"]) < EXACT
        assert deviation(scale * memory, want["state_final"]) < EXACT


# Dense matrices.


def dense_s4d(w: dict[str, Tensor], row: int, rule: str, length: int) -> Tensor:
    """Taps ``(G, length)`` of a row of weights: the diagonal written out as matrices, conjugates as states too."""
    rate = -w["log_decay"][row].exp()
    if "frequency" in w:
        a, c = torch.complex(rate, w["frequency"][row]), torch.view_as_complex(w["C"][row])
        a, c = torch.cat([a, a.conj()], dim=-1), torch.cat([c, c.conj()], dim=-1)
    else:
        a, c = rate, w["C"][row]
    matrix, b = discretised(torch.diag_embed(a), torch.ones_like(a), w["log_dt"][row].exp(), rule)
    return impulse_response(matrix, b, c, length)


def dense_ema(w: dict[str, Tensor], row: int, length: int) -> Tensor:
    """Taps ``(G, length)`` from an average that is kept and updated."""
    p, alpha = torch.sigmoid(w["delta"][row]), torch.sigmoid(w["alpha"][row])
    out, average = [], torch.zeros_like(p)
    for t in range(length):
        average = p * w["beta"][row] * (t == 0) + (1 - p * alpha) * average
        out.append((average * w["gamma"][row]).sum(-1) / p.size(-1) ** 0.5)
    return torch.stack(out, dim=-1)


def dense_shift(w: dict[str, Tensor], row: int, length: int) -> Tensor:
    b, c = w["B"][row], w["C"][row]
    shift = torch.diag(torch.ones(b.size(-1) - 1, dtype=b.dtype), -1)
    return impulse_response(shift.expand(b.size(0), -1, -1), b, c, length)


L = 23
DEFINITIONS: dict[str, tuple[Callable[..., Filter], Callable[[dict[str, Tensor], int], Tensor]]] = {
    f"s4d, {start}, {rule}": (
        lambda start=start, rule=rule, **at: S4D(3, L, 2, modes=4, start=start, discretisation=rule, **at),
        lambda w, row, rule=rule: dense_s4d(w, row, rule, L),
    )
    for start in ("lin", "inv", "real")
    for rule in ("zoh", "bilinear")
}
DEFINITIONS["ema"] = (lambda **at: EMA(3, L, 2, modes=4, **at), lambda w, row: dense_ema(w, row, L))
DEFINITIONS["shift"] = (lambda **at: ShiftSSM(3, L, 2, state=6, **at), lambda w, row: dense_shift(w, row, L))


@pytest.mark.parametrize("causal", [True, False], ids=["causal", "two-sided"])
@pytest.mark.parametrize("name", DEFINITIONS)
def test_outputs_and_gradients_are_those_of_dense_matrices(name: str, causal: bool) -> None:
    make, define = DEFINITIONS[name]
    h = make(causal=causal, dtype=torch.float64)

    def sides(weights: dict[str, Tensor], i: int) -> tuple[Tensor, Tensor | None]:
        ahead, behind = define(weights, i), None if causal else define(weights, 2 + i)
        if behind is not None and isinstance(h, EMA):  # both averages count the present
            now = torch.zeros_like(ahead)
            now[:, 0] = behind[:, 0]
            ahead, behind = ahead + now, behind[:, 1:]
        if behind is not None and isinstance(h, ShiftSSM):  # as many lags as ahead, 0 among those
            behind = behind[:, : h.support - 1]
        return ahead, behind

    check_against_dense(h, L, sides, outputs=1e-10, grads=1e-9)


# Long rows, single precision, awkward numbers.


@pytest.mark.parametrize(
    "make",
    [
        lambda **at: S4D(16, 1 << 16, modes=32, **at),
        lambda **at: S4D(16, 1 << 16, modes=32, discretisation="bilinear", **at),
        lambda **at: S4D(16, 1 << 16, modes=32, start="inv", **at),
        lambda **at: S4D(16, 1 << 16, modes=32, start="real", dt=(1e-4, 1e-2), **at),
        lambda **at: EMA(16, 1 << 16, modes=16, **at),
    ],
    ids=["lin", "bilinear", "inv", "real", "ema"],
)
def test_single_precision_over_long_rows(make: Callable[..., Filter]) -> None:
    """Taps in float32 are off by few of its units, gradients too, and the same weights' taps in float64 are close."""
    h = make()
    exact = make(dtype=torch.float64)
    exact.load_state_dict(h.state_dict())
    probe = torch.randn(1 << 16, 16)
    got, want = h(1 << 16), exact(1 << 16)
    ((got[0] * probe).sum() + (want[0] * probe.double()).sum()).backward()
    size = want.square().sum(1).sqrt()
    assert ((got - want).abs().amax(1) / size).max() < 2e-5
    for p, q in zip(h.parameters(), exact.parameters(), strict=True):
        assert (p.grad - q.grad).norm() < 5e-4 * q.grad.norm()


def test_memory_does_not_grow_with_modes_times_taps() -> None:
    """What is kept for the backward pass, at 64K taps: the tables, which a thousandth of all powers would fill."""
    length, modes, channels = 1 << 16, 64, 4
    h = S4D(channels, length, modes=modes)
    kept = 0

    def pack(t: Tensor) -> Tensor:
        nonlocal kept
        kept += t.numel() * t.element_size()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        h(length).sum().backward()
    assert kept < channels * 32 * 8 * modes * math.isqrt(length)
    assert kept < 0.1 * channels * length * modes * 8


def test_a_bilinear_pole_at_zero_and_below() -> None:
    """``A = -2 / dt`` has the pole 0 and faster ones negative poles: no logarithm of nothing, no NaN."""
    h = S4D(2, 20, modes=3, start="real", discretisation="bilinear", dt=(2.0, 2.0), dtype=torch.float64)
    load(h, log_decay=torch.tensor([0.5, 1.0, 2.0]).log().expand(2, 3))
    assert (h.log_dt.exp()[..., None] * h.log_decay.exp() == 2).any()
    want = dense_s4d(dict(h.named_parameters()), 0, "bilinear", 20)
    torch.testing.assert_close(taps(h, 20), want)
    h(20).square().sum().backward()
    assert all(p.grad.isfinite().all() for p in h.parameters())
    op = HyenaOperator(2, 20, filter=h, dtype=torch.float64).eval()
    x = torch.randn(1, 20, 2, dtype=torch.float64)
    state = op.init_state(1)
    with torch.no_grad():
        torch.testing.assert_close(op.prefill(x, state)[0], op(x))


def test_averages_that_forget_at_once() -> None:
    h = EMA(2, 20, modes=3)
    load(h, delta=torch.full((2, 3), 40.0), alpha=torch.full((2, 3), 40.0))
    y = h(20)
    y.sum().backward()
    assert y.isfinite().all()
    assert (y[:, 2:].abs() < 1e-6 * y[:, :1].abs()).all()
    assert all(p.grad.isfinite().all() for p in h.parameters())


@pytest.mark.parametrize("kind", [S4D, EMA, DLR, ModalFilter])
def test_what_has_faded_is_zero(kind: type[Filter]) -> None:
    """No number is smaller than the smallest normal one, which is slow to compute with, on any way to the gradients."""
    h = kind(4, 5000)
    with torch.no_grad():
        if kind is not EMA:
            h.log_decay.fill_(2.0)
    small: list[Tensor] = []

    def pack(t: Tensor) -> Tensor:
        if t.is_floating_point() or t.is_complex():
            parts = torch.view_as_real(t) if t.is_complex() else t
            small.append(((parts != 0) & (parts.abs() < torch.finfo(parts.dtype).tiny)).sum())
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        y = h(5000)
    y.square().sum().backward()
    assert small
    assert not any(small)
    assert not ((y != 0) & (y.abs() < torch.finfo(y.dtype).tiny)).any()
    assert all(p.grad.isfinite().all() for p in h.parameters())


def test_steps_are_real_where_poles_are() -> None:
    for h in (EMA(4, 30), S4D(4, 30, start="real")):
        assert h.modes().is_real
        conv = LongConv(4, 30, filter=h)
        assert not conv.online([4], 30).allocate(1)[0].is_complex()
    assert EMA(4, 30, truncation=8).modes() is None
    assert S4D(4, 30, causal=False).modes() is None


@pytest.mark.parametrize("start", ["lin", "inv", "real"])
def test_stretching_keeps_the_shape(start: str) -> None:
    """A held input of two positions at half the step is one of one position at the whole step."""
    h = S4D(3, 64, modes=4, start=start, dt=(1e-2, 1e-1), dtype=torch.float64)
    before = h(64).detach()
    h.extend(128, "stretch")
    torch.testing.assert_close(h(128).unflatten(1, (64, 2)).sum(2), before)
    assert h.l_max == 128
    for other in (EMA(3, 64), ShiftSSM(3, 64)):
        with pytest.raises(ValueError, match=r"l_max=64 .*128.*mode='continue'"):
            other.extend(128, "stretch")


# Learning rates.


def test_poles_and_steps_train_slowly() -> None:
    op = HyenaOperator(8, 32, order=3, filter=S4D)
    groups = {g["name"]: g for g in param_groups(op, 1e-2)}
    h = op.conv.filter
    assert {id(p) for p in groups["dynamics"]["params"]} == {id(h.log_dt), id(h.log_decay), id(h.frequency)}
    assert {id(p) for p in groups["filters"]["params"]} == {id(h.C)}
    rates = {name: (g["lr"], g["weight_decay"]) for name, g in groups.items()}
    assert rates["dynamics"] == (1e-3, 0.0)
    assert rates["filters"] == (1e-2, 0.0)

    def rate(lr: Any, **rates: float) -> float:
        return {g["name"]: g["lr"] for g in param_groups(op, lr, **rates)}["dynamics"]

    assert rate(1e-4) == 1e-4
    assert rate(1e-4, filter_lr=1.0) == 1e-3
    assert rate(1e-4, dynamics_lr=0.5) == 0.5
    assert rate(torch.tensor(0.1)) == torch.tensor(1e-3)
    with pytest.warns(UserWarning, match="dynamics_lr has no effect"):
        param_groups(HyenaOperator(8, 32, filter=ExplicitFilter), 1e-3, dynamics_lr=1e-4)
    frozen = HyenaOperator(8, 32, filter=S4D)
    frozen.conv.filter.log_dt.requires_grad_(False)
    assert sum(len(g["params"]) for g in param_groups(frozen, 1e-3)) == len(list(frozen.parameters())) - 1


# Bad arguments.


def test_errors_say_what_would_work() -> None:
    with pytest.raises(ValueError, match="start must be one of 'lin', 'inv', 'real', got 'legs'"):
        S4D(4, 8, start="legs")
    with pytest.raises(ValueError, match="discretisation must be one of 'zoh', 'bilinear', got 'euler'"):
        S4D(4, 8, discretisation="euler")
    for dt in ((0.1, 0.01), (0.0, 0.1), (0.1,), (0.1, math.inf)):
        with pytest.raises(ValueError, match="dt must be two positive numbers in order"):
            S4D(4, 8, dt=dt)
    for build in (lambda: S4D(4, 8, modes=0), lambda: EMA(4, 8, modes=0), lambda: ShiftSSM(4, 8, state=0)):
        with pytest.raises(ValueError, match="got 0"):
            build()
    with pytest.raises(ValueError, match="truncation >= 1, got 0"):
        EMA(4, 8, truncation=0)
