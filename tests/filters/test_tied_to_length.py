"""S4 and rational transfer functions: by dense matrices in float64, at other lengths, in single precision."""

from __future__ import annotations

import cmath
import math

import pytest
import torch
from torch import Tensor

from helpers.state_spaces import check_against_dense, discretised, impulse_response
from hyena import HyenaOperator
from hyena.filters import S4, Filter, TransferFunctionFilter, _hippo, s4

L = 23


def dense_s4(w: dict[str, Tensor], row: int) -> Tensor:
    """Taps ``(G, L)``: the matrix written out, ``C`` from ``C (1 - A^L)``, one step after the other."""
    p, b, c = (torch.view_as_complex(w[name][row]) for name in "PBC")
    poles = torch.complex(-w["log_decay"][row].exp(), w["frequency"][row])
    poles, p, b, c = (torch.cat([t, t.conj()], dim=-1) for t in (poles, p, b, c))
    a = torch.diag(poles) - torch.outer(p, p.conj())
    dt = w["log_dt"][row].exp()
    step, enter = discretised(a.expand(dt.size(0), -1, -1), b.expand(dt.size(0), -1), dt, "bilinear")
    ring = torch.eye(a.size(0), dtype=a.dtype) - torch.linalg.matrix_power(step, L)
    return impulse_response(step, enter, torch.linalg.solve(ring.mT, c), L)


def dense_transfer(w: dict[str, Tensor], row: int) -> Tensor:
    """Taps ``(G, L)``: ``a`` convolved with them on a ring is ``b``."""
    a, b = w["a"][row], w["b"][row]
    below = torch.cat([torch.ones_like(a[:, :1]), a], dim=-1)
    ring = torch.stack([torch.nn.functional.pad(below, (0, L - below.size(1))).roll(t, -1) for t in range(L)], dim=-1)
    return torch.linalg.solve(ring, torch.nn.functional.pad(b, (0, L - b.size(1))))


CASES = {
    "s4": (lambda **at: S4(3, L, 2, modes=4, **at), dense_s4),
    "transfer": (lambda **at: TransferFunctionFilter(3, L, 2, order=4, **at), dense_transfer),
}


@pytest.mark.parametrize("causal", [True, False], ids=["causal", "two-sided"])
@pytest.mark.parametrize("name", CASES)
def test_outputs_and_gradients_are_those_of_dense_matrices(name: str, causal: bool) -> None:
    make, define = CASES[name]
    h = make(causal=causal, dtype=torch.float64)

    def sides(weights: dict[str, Tensor], i: int) -> tuple[Tensor, Tensor | None]:
        return define(weights, i), None if causal else define(weights, 2 + i)

    check_against_dense(h, L, sides, outputs=1e-9, grads=1e-8)


def test_hippo_is_normal_plus_low_rank() -> None:
    """LegS written out has the same taps as its diagonal-plus-low-rank form."""
    modes, n = 4, torch.arange(8, dtype=torch.float64)
    r = (2 * n + 1).sqrt()
    legs = -(torch.tril(torch.outer(r, r), -1) + torch.diag(n + 1))
    c = torch.randn(8, dtype=torch.float64)
    dt = torch.tensor(0.1, dtype=torch.float64)
    want = impulse_response(*discretised(legs, r, dt, "bilinear"), c, 20)
    frequency, p, b = _hippo.legs(modes)
    assert (frequency > 0).all()
    poles = torch.complex(torch.full_like(frequency, -0.5), frequency)
    poles, p, b = (torch.cat([t, t.conj()]) for t in (poles, p, b))
    a = torch.diag(poles) - torch.outer(p, p.conj())
    step, enter = discretised(a, b, dt, "bilinear")
    # C in the other basis: what makes the first 8 taps the same; then all are.
    states = [enter]
    for _ in range(19):
        states.append(step @ states[-1])
    states = torch.stack(states)
    other = torch.linalg.lstsq(states, want.to(states.dtype)[:, None]).solution[:, 0]
    torch.testing.assert_close((states @ other).real, want, rtol=1e-6, atol=1e-6 * want.abs().max().item())
    torch.testing.assert_close(torch.linalg.eigvals(a).real.sort().values, -(n + 1).flip(0), rtol=1e-6, atol=1e-6)


@pytest.fixture(params=["sums", "powers"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Either way to the taps of S4, whatever the length."""
    monkeypatch.setattr(s4, "_POWERS_FROM", {"sums": 0, "powers": 1 << 30}[request.param])
    return request.param


@pytest.mark.parametrize("causal", [True, False], ids=["causal", "two-sided"])
def test_both_ways_to_the_taps_of_s4(way: str, causal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    taken = []
    for name in ("_by_sums", "_by_powers"):
        find = getattr(s4, name)
        monkeypatch.setattr(s4, name, lambda *args, find=find, name=name: taken.append(name) or find(*args))
    test_outputs_and_gradients_are_those_of_dense_matrices("s4", causal)
    assert set(taken) == {f"_by_{way}"}


def test_the_shorter_way_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """Powers in long rows, sums in short ones and where there are many modes."""
    taken = []
    for name in ("_by_sums", "_by_powers"):
        stub = lambda dt, *args, name=name: taken.append(name) or torch.zeros(dt.size(0), args[-1])  # noqa: E731
        monkeypatch.setattr(s4, name, stub)
    for modes, length, way in ((32, 1024, "_by_sums"), (32, 2048, "_by_powers"), (128, 8192, "_by_sums")):
        taken.clear()
        S4(2, length, modes=modes)(length)
        assert set(taken) == {way}


def test_the_transform_of_s4_is_its_cauchy_kernel(way: str) -> None:
    """Theorem 3 of the paper at every frequency of the row."""
    h = S4(2, L, modes=3, dtype=torch.float64)
    got = torch.fft.fft(h(L)[0].detach(), dim=0)
    w = {name: t.detach()[0] for name, t in h.named_parameters()}
    poles = torch.complex(-w["log_decay"].exp(), w["frequency"])
    p, b, c = (torch.view_as_complex(w[name]) for name in "PBC")
    poles, p, b, c = (torch.cat([t, t.conj()], dim=-1) for t in (poles, p, b, c))
    for g in range(2):
        for k in range(L):
            omega = cmath.exp(-2j * math.pi * k / L)
            r = 1 / (2 / w["log_dt"][g].exp() * (1 - omega) / (1 + omega) - poles)
            k00, k01, k10, k11 = ((x * r * y).sum() for x, y in ((c[g], b), (c[g], p), (p.conj(), b), (p.conj(), p)))
            torch.testing.assert_close(got[k, g], 2 / (1 + omega) * (k00 - k01 * k10 / (1 + k11)))


@pytest.mark.parametrize("pieces", [1 << 22, 100])
def test_s4_in_pieces(way: str, pieces: int, monkeypatch: pytest.MonkeyPatch) -> None:
    h = S4(3, L, 2, modes=4, dtype=torch.float64)
    h(L).square().sum().backward()
    want = {name: p.grad.clone() for name, p in h.named_parameters()}
    h.zero_grad()
    monkeypatch.setattr(s4, "_ENTRIES", pieces)
    h(L).square().sum().backward()
    for name, p in h.named_parameters():
        torch.testing.assert_close(p.grad, want[name])


@pytest.mark.parametrize("pieces", [1 << 22, 30])
def test_s4_has_derivatives_of_derivatives(way: str, pieces: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s4, "_ENTRIES", pieces)
    h = S4(2, 9, modes=3, dtype=torch.float64)
    names, leaves = zip(*h.named_parameters(), strict=True)

    def taps_of(*values: Tensor) -> Tensor:
        return torch.func.functional_call(h, dict(zip(names, values, strict=True)), 9)

    assert torch.autograd.gradgradcheck(taps_of, leaves, fast_mode=True)
    # Where autograd is asked for one weight alone, by differences.
    at = h.log_dt.detach().clone()

    def slope(move: float) -> Tensor:
        with torch.no_grad():
            h.log_dt.copy_(at + move)
        return torch.autograd.grad(h(9).pow(3).sum(), h.log_dt, create_graph=True)[0].sum()

    got = torch.autograd.grad(slope(0.0), h.log_dt)[0].sum()
    torch.testing.assert_close(got, (slope(1e-5) - slope(-1e-5)).detach() / 2e-5, rtol=1e-6, atol=1e-8)


def test_s4_of_many_weights_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """By torch.func.vmap, taps and gradients."""
    monkeypatch.setattr(s4, "_POWERS_FROM", 0)
    h = S4(2, 9, modes=3, dtype=torch.float64)
    many = {name: torch.stack([t.detach(), t.detach() + 0.1]) for name, t in h.named_parameters()}

    def energy(w: dict[str, Tensor], probe: Tensor) -> Tensor:
        return (torch.func.functional_call(h, w, 9) * probe).square().sum()

    probes = torch.randn(2, 1, 9, 2, dtype=torch.float64)
    got = torch.func.vmap(torch.func.grad(energy))(many, probes)
    same = torch.func.vmap(torch.func.grad(energy), in_dims=(None, 0))({k: t[0] for k, t in many.items()}, probes)
    for i in range(2):
        w = {name: t[i].clone().requires_grad_() for name, t in many.items()}
        first = {name: t[0].clone().requires_grad_() for name, t in many.items()}
        for of, found in ((w, got), (first, same)):
            want = torch.autograd.grad(energy(of, probes[i]), list(of.values()))
            for name, g in zip(of, want, strict=True):
                torch.testing.assert_close(found[name][i], g, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("length", [1 << 10, 1 << 14])
def test_s4_in_single_precision(way: str, length: int) -> None:
    h, exact = S4(4, length), S4(4, length, dtype=torch.float64)
    exact.load_state_dict(h.state_dict())
    got, want = h(length), exact(length)
    assert (got - want).norm() < 1e-3 * want.norm()
    probe = torch.randn(1, length, 4)
    got.backward(probe)
    want.backward(probe.double())
    for (name, p), q in zip(h.named_parameters(), exact.parameters(), strict=True):
        assert (p.grad - q.grad).norm() < 5e-3 * q.grad.norm(), name


@pytest.mark.parametrize("precision", ["high", "medium"])
def test_s4_where_products_are_rounded(precision: str) -> None:
    """Squares of squares are made in float64 where torch may round what it multiplies."""
    length = 1 << 12
    h = S4(4, length)
    want = h(length).detach()
    try:
        torch.set_float32_matmul_precision(precision)
        torch.testing.assert_close(h(length), want, rtol=1e-4, atol=1e-5)
    finally:
        torch.set_float32_matmul_precision("highest")


def test_s4_keeps_nothing_of_modes_times_taps(way: str) -> None:
    length, kept = 1 << 15, 0
    h = S4(16, length)

    def pack(t: Tensor) -> Tensor:
        nonlocal kept
        kept += t.numel()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        h(length)
    assert kept < 16 * 32 * length // 8


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("new", [L - 5, 2 * L + 1])
def test_weights_of_another_length(name: str, new: int) -> None:
    h = CASES[name][0](dtype=torch.float64)
    with torch.no_grad():  # slow modes, which go round the ring
        if name == "s4":
            h.log_dt.fill_(-5)
        else:
            h.a.copy_(torch.tensor([-1.2, 0.3, 0.1, -0.15], dtype=torch.float64))
    want = h(L).detach()
    kind, options = type(h), {"modes": 4} if name == "s4" else {"order": 4}
    other = kind(3, new, 2, **options, dtype=torch.float64)
    other.load_state_dict(h.state_dict())
    n = min(L, new)
    torch.testing.assert_close(other(n), want[:, :n])
    assert other.length.item() == new
    saved = {key: t.clone() for key, t in h.state_dict().items()}
    assigned = kind(3, new, 2, **options, device="meta")
    assigned.load_state_dict(h.state_dict(), assign=True)
    torch.testing.assert_close(assigned(n), want[:, :n])
    assert all(torch.equal(t, saved[key]) for key, t in h.state_dict().items())
    back = kind(3, L, 2, **options, dtype=torch.float64)
    back.load_state_dict(other.state_dict())
    torch.testing.assert_close(back(L), want, rtol=1e-6, atol=1e-8)
    if name == "transfer":  # beyond the end the recurrence goes on
        h.extend(new)
        taps = h(new).detach()[0].mT
        for t in range(10, new):
            now = -sum(h.a[0, :, j] * taps[:, t - 1 - j] for j in range(4))
            torch.testing.assert_close(taps[:, t], now.detach())


def test_they_step_in_tiles() -> None:
    for h in (S4(4, 40, modes=3, dtype=torch.float64), TransferFunctionFilter(4, 40, order=3, dtype=torch.float64)):
        op = HyenaOperator(4, 40, filter=h, dtype=torch.float64).eval()
        x, state, got = torch.randn(1, 40, 4, dtype=torch.float64), op.init_state(1), []
        with torch.no_grad():
            for part in x.split([17, 1, 1, 21], dim=1):
                got.append(op.prefill(part, state)[0])
            torch.testing.assert_close(torch.cat(got, dim=1), op(x))


def test_errors_say_what_would_work() -> None:
    with pytest.raises(ValueError, match="order=8 needs rows of at least 9 positions, got l_max=8"):
        TransferFunctionFilter(4, 8, order=8)
    with pytest.raises(ValueError, match="order=5 needs rows of at least 6 positions, got l_max=4"):
        TransferFunctionFilter(4, 8, order=5).extend(4)
    with pytest.raises(ValueError, match="dt must be two positive numbers"):
        S4(4, 8, dt=(0, 1))
    made: list[Filter] = [S4(4, 8), TransferFunctionFilter(4, 8)]
    for h in made:
        with pytest.raises(ValueError, match=r"l_max=8 cannot be stretched to l_max=16; use mode='continue'"):
            h.extend(16, "stretch")
