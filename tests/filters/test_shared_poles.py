"""DSS, DLR and modal filters against released numbers and their definitions."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from helpers.released import deviation, golden
from hyena import HyenaOperator, param_groups
from hyena.conv import LongConv
from hyena.filters import DLR, DSS, ModalFilter, _exponentials

EXACT = 1e-9
VERSIONS = {
    "softmax": {"version": "softmax"},
    "exp": {"version": "exp"},
    "exp_no_scale": {"version": "exp", "scale": False},
    "clip": {"version": "clip"},
    "clip_no_scale": {"version": "clip", "scale": False},
}


def released_dss(want: dict[str, Tensor], options: dict[str, object]) -> DSS:
    h = DSS(5, 64, modes=6, **options, dtype=torch.float64)
    if "param.Lambda" in want:
        decay, frequency = want["param.Lambda"].unbind(-1)
    else:
        decay, frequency = want["param.Lambda_log_neg_re"], want["param.Lambda_im"]
    with torch.no_grad():
        h.decay.copy_(decay[None])
        h.frequency.copy_(frequency[None])
        h.log_dt.copy_(want["param.log_dt"][None])
        h.W.copy_(want["param.W"])
    return h


@pytest.mark.parametrize("name", VERSIONS)
def test_dss_as_released(name: str) -> None:
    want = golden(f"dss_{name}").tensors
    h = released_dss(want, VERSIONS[name])
    for length in (48, 64):
        assert deviation(h(length)[0].mT, want[f"taps_{length}"][0]) < EXACT
    (h(64)[0].mT * want["probe"][0]).sum().backward()
    if "param.Lambda" in want:
        grads = {"Lambda": torch.stack([h.decay.grad[0], h.frequency.grad[0]], dim=-1)}
    else:
        grads = {"Lambda_log_neg_re": h.decay.grad[0], "Lambda_im": h.frequency.grad[0]}
    grads |= {"log_dt": h.log_dt.grad[0], "W": h.W.grad}
    if name == "softmax":
        return  # below
    for key, got in grads.items():
        assert deviation(got, want[f"grad.{key}"]) < EXACT, key


def test_the_gradient_of_a_growing_mode() -> None:
    """The released softmax takes the exponent that it subtracts for a constant, where a mode grows; its gradient of
    ``Λ`` and of the steps is not that of its taps. Ours is; all else is the same.
    """
    want = golden("dss_softmax").tensors
    h, other = released_dss(want, VERSIONS["softmax"]), released_dss(want, VERSIONS["softmax"])
    grows = h.decay[0] > 0
    assert grows.tolist() == [True, True, False, False, False, False]
    (h(64)[0].mT * want["probe"][0]).sum().backward()
    assert deviation(h.W.grad, want["grad.W"]) < EXACT
    for got, i in ((h.decay.grad[0], 0), (h.frequency.grad[0], 1)):
        assert deviation(got[~grows], want["grad.Lambda"][~grows, i]) < EXACT
        assert deviation(got[grows], want["grad.Lambda"][grows, i]) > 0.1
    taps = by_definition(other, 64, constant=True)
    assert deviation(taps[0], want["taps_64"][0]) < 1e-4  # but for epsilon
    (taps[0] * want["probe"][0]).sum().backward()
    for key, got in (("Lambda", torch.stack([other.decay.grad[0], other.frequency.grad[0]], -1)),):
        assert deviation(got, want[f"grad.{key}"]) < 1e-4
    assert deviation(other.log_dt.grad[0], want["grad.log_dt"]) < 1e-4


def by_definition(h: DSS, length: int, constant: bool = False) -> Tensor:
    """Taps ``(R, G, length)`` from the full array of exponentials.

    ``constant``: of a mode that grows, the largest exponent is subtracted as a constant, once its share is computed.
    """
    re = -h.decay.exp() if h.version == "exp" else h.decay if h.version == "softmax" else h.decay.clamp(max=-1e-4)
    im = h.frequency.exp() if h.log_frequency else h.frequency
    dt = torch.ones(h.W.size(0), h.channels, 2) if h.log_dt is None else h.log_dt.exp()
    z = torch.complex(dt[..., :1] * re[:, None], dt[..., 1:] * im[:, None])[..., None]
    p = z * torch.arange(length)
    inverse = torch.complex(re, im)[:, None, :, None]
    inverse = 1 / inverse
    if h.version == "softmax":
        most = torch.where(z.real > 0, z * (length - 1), 0)
        total = torch.exp(p - most).sum(-1, keepdim=True)
        rows = torch.exp(p - (most.detach() if constant else most)) / total * inverse
    else:
        rows = torch.exp(p) * ((torch.exp(z) - 1) * inverse if h.scale else 1)
    return (torch.view_as_complex(h.W)[..., None] * rows).sum(2).real


@pytest.mark.parametrize("causal", [True, False], ids=["causal", "two-sided"])
@pytest.mark.parametrize("version", ["softmax", "exp", "clip"])
def test_dss_is_its_definition(version: str, causal: bool) -> None:
    options = {"version": version, "causal": causal, "dtype": torch.float64}
    if version == "softmax":
        options["epsilon"] = 0.0
    h = DSS(3, 30, 2, modes=5, **options)
    with torch.no_grad():
        h.decay.add_(torch.randn_like(h.decay))
    other = DSS(3, 30, 2, modes=5, **options)
    other.load_state_dict(h.state_dict())
    got, want = h(30), by_definition(other, 30).mT
    if not causal:
        want = torch.cat([want[2:, :-1].flip(1), want[:2]], dim=1)
    torch.testing.assert_close(got, want)
    probe = torch.randn_like(want)
    got.backward(probe)
    want.backward(probe)
    for p, q in zip(h.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad)


def test_dss_of_gss() -> None:
    h = DSS(3, 30, modes=5, dt=None, log_frequency=True, dtype=torch.float64)
    torch.testing.assert_close(h(30), by_definition(h, 30).mT)
    assert h.log_dt is None
    assert "log_dt" not in h.state_dict()


@pytest.mark.parametrize("entries", [1 << 22, 64], ids=["at once", "in pieces"])
@pytest.mark.parametrize("causal", [True, False], ids=["causal", "two-sided"])
def test_dlr_is_its_definition(entries: int, causal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_exponentials, "_TABLE_ENTRIES", entries)
    h = DLR(3, 29, 2, modes=5, causal=causal, dtype=torch.float64)
    other = DLR(3, 29, 2, modes=5, causal=causal, dtype=torch.float64)
    other.load_state_dict(h.state_dict())
    pole = torch.exp(torch.complex(-other.log_decay.exp(), other.frequency))
    want, state = [], torch.ones_like(pole)
    for _ in range(29):
        want.append((torch.view_as_complex(other.C) * state[:, None]).sum(-1).real)
        state = state * pole
    taps = torch.stack(want, dim=1)
    if not causal:
        taps = torch.cat([taps[2:, :-1].flip(1), taps[:2]], dim=1)
    got = h(29)
    torch.testing.assert_close(got, taps)
    probe = torch.randn_like(taps)
    got.backward(probe)
    taps.backward(probe)
    for p, q in zip(h.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad)


def test_many_shared_modes_need_little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """1024 modes and 8K taps: nothing of the size of their product is kept."""
    monkeypatch.setattr(_exponentials, "_TABLE_ENTRIES", 1 << 16)
    length, modes = 1 << 13, 1024
    h, kept = DLR(2, length, modes=modes), 0

    def pack(t: Tensor) -> Tensor:
        nonlocal kept
        kept = max(kept, t.numel())
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        loss = h(length).sum()
    assert 0 < kept < length * modes // 100
    loss.backward()
    assert h.log_decay.grad.isfinite().all()


@pytest.mark.parametrize("length", [100, 5000, 30_000])
def test_the_norm_of_many_modes(length: int) -> None:
    h = DLR(4, length, modes=200)
    assert h(length).detach().square().sum(1).sqrt().sub(1).abs().max() < 0.2


def test_modes_of_the_softmax_may_grow_without_overflow() -> None:
    h = DSS(3, 4096, modes=4, version="softmax", dt=(1.0, 1.0))
    with torch.no_grad():
        h.decay.copy_(torch.tensor([[-50.0, 50.0, 1e-3, 0.0]]))
    y = h(4096)
    y.square().sum().backward()
    assert y.isfinite().all()
    assert all(p.grad.isfinite().all() for p in h.parameters())
    with pytest.raises(ValueError, match="depend on the length"):
        HyenaOperator(3, 4096, filter=h).init_state(1)


@pytest.mark.filterwarnings("ignore:the parameter group")
def test_rates() -> None:
    for kind, slow in ((DSS, {"log_dt", "decay", "frequency"}), (DLR, {"log_decay", "frequency"})):
        h = kind(4, 16)
        groups = {g["name"]: g for g in param_groups(LongConv(4, 16, filter=h), 1e-2)}
        assert {id(p) for p in groups["dynamics"]["params"]} == {id(getattr(h, name)) for name in slow}


def test_stretching() -> None:
    h = DLR(3, 32, modes=4, dtype=torch.float64)
    before = h(32).detach()
    h.extend(64, "stretch")
    torch.testing.assert_close(h(64)[:, ::2], before)
    with pytest.raises(ValueError, match="l_max=16 cannot be stretched to l_max=32"):
        DSS(4, 16, dt=None).extend(32, "stretch")


def test_errors_say_what_would_work() -> None:
    with pytest.raises(ValueError, match="version must be one of 'softmax', 'exp', 'clip', got 'relu'"):
        DSS(4, 8, version="relu")
    with pytest.raises(ValueError, match="scale=False means nothing: use 'exp' or 'clip'"):
        DSS(4, 8, version="softmax", scale=False)
    with pytest.raises(ValueError, match="epsilon must be finite and not negative, got -1"):
        DSS(4, 8, version="softmax", epsilon=-1)
    with pytest.raises(ValueError, match=r"epsilon=0\.1 is of version='softmax'"):
        DSS(4, 8, epsilon=0.1)
    with pytest.raises(ValueError, match="decay must be two positive numbers"):
        DLR(4, 8, decay=(0.0, 1.0))


# Modal filters.


@pytest.mark.parametrize("real", [False, True], ids=["StripedHyena", "Evo 2"])
def test_modal_filters_of_striped_hyena(real: bool) -> None:
    """Their taps begin with the sum of the residues: ours with a number of its own."""
    want = golden("modal_iir").tensors
    if real:
        decay, angle, taps = -want["real.log_poles"], None, want["real.taps"]
        residue, first = want["real.residues"] * torch.exp(-decay), want["real.residues"].sum(-1)
    else:
        pole, weight = (torch.view_as_complex(want[f"complex.{name}"]) for name in ("poles", "residues"))
        decay, angle, taps = -pole.abs().log(), pole.angle(), want["complex.taps"]
        residue, first = torch.view_as_real(weight * pole), weight.real.sum(-1)
    channels, modes = decay.shape
    h = ModalFilter(channels, taps.size(1), modes=modes, real=real, dtype=torch.float64)
    with torch.no_grad():
        h.log_decay.copy_(decay.log()[None])
        if angle is not None:
            h.angle.copy_(angle[None])
        h.residue.copy_(residue[None])
        h.first.copy_(first[None])
    assert deviation(h(taps.size(1))[0].mT, taps) < EXACT
    assert h.modes().is_real == real
    # Steps of the recurrence give the same.
    conv = LongConv(channels, taps.size(1), filter=h, dtype=torch.float64)
    with torch.no_grad():
        conv.bias.zero_()
        online = conv.online([channels], taps.size(1))
        (memory,) = online.allocate(1)
        x = torch.zeros(1, taps.size(1), channels, dtype=torch.float64)
        x[:, 0] = 1
        got = torch.cat([online.extend(0, memory, t, x[:, t : t + 1]) for t in range(40)], dim=1)
    assert deviation(got[0].mT, taps[:, :40]) < EXACT
    assert math.isclose(first.sum().item(), taps[:, 0].sum().item(), rel_tol=1e-12)


def test_modal_filters_of_laughing_hyena() -> None:
    """``h_0`` free, ``h_t = sum_k Re(R_k p_k^(t-1))``, by powers written out, and the gradients."""
    h = ModalFilter(3, 25, 2, modes=4, dtype=torch.float64)
    other = ModalFilter(3, 25, 2, modes=4, dtype=torch.float64)
    other.load_state_dict(h.state_dict())
    pole = torch.exp(torch.complex(-other.log_decay.exp(), other.angle))
    want, state = [other.first], torch.view_as_complex(other.residue)
    for _ in range(24):
        want.append(state.real.sum(-1))
        state = state * pole
    taps, got = torch.stack(want, dim=1), h(25)
    torch.testing.assert_close(got, taps)
    probe = torch.randn_like(taps)
    got.backward(probe)
    taps.backward(probe)
    for p, q in zip(h.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad)
