"""The filters that Hyena's paper compares its own with, by definition in float64."""

from __future__ import annotations

import math

import pytest
import torch

from hyena.filters import CKConv, ExplicitFilter, FourierFilter


@pytest.mark.parametrize("causal", [True, False], ids=["causal", "two-sided"])
@pytest.mark.parametrize(("length", "modes"), [(16, 9), (17, 9), (30, 4)])
def test_fourier_filters_are_sums_of_waves(length: int, modes: int, causal: bool) -> None:
    h = FourierFilter(3, length, 2, modes=modes, causal=causal, dtype=torch.float64)
    r = torch.view_as_complex(h.R.detach().clone()).requires_grad_()
    period = length if causal else 2 * length - 1
    lags = torch.arange(0 if causal else 1 - length, length, dtype=torch.float64)
    waves = torch.exp(2j * math.pi * torch.outer(lags, torch.arange(modes)) / period)
    want = torch.einsum("fgm,tm->ftg", r, waves).real
    got, probe = h(length), torch.randn_like(want)
    torch.testing.assert_close(got, want)
    got.backward(probe)
    want.backward(probe)
    torch.testing.assert_close(h.R.grad, torch.view_as_real(r.grad))
    # As many as the period: the norm is exact, and the coefficients are those of a transform.
    torch.testing.assert_close(got.square().sum(1), torch.ones(2, 3, dtype=torch.float64))
    if causal:
        weight = torch.full((modes, 1, 1), 0.5 * length, dtype=torch.float64)
        weight[0] *= 2
        if 2 * (modes - 1) == length:
            weight[-1] *= 2
        spectrum = torch.fft.rfft(got.detach(), dim=1)[:, :modes]
        torch.testing.assert_close(spectrum[:, 1:-1], (weight[:, 0] * r.detach().mT)[:, 1:-1])
        assert (torch.fft.rfft(got.detach(), dim=1)[:, modes:].abs() < 1e-10).all()


def test_a_period_goes_with_the_weights() -> None:
    h, other = FourierFilter(3, 16, modes=4), FourierFilter(3, 32, modes=4)
    other.load_state_dict(h.state_dict())
    torch.testing.assert_close(other(16), h(16))
    torch.testing.assert_close(other(32)[:, 16:], h(16), atol=1e-5, rtol=1e-4)
    h.extend(64, "stretch")
    torch.testing.assert_close(h(64)[:, ::4], other(16), atol=1e-5, rtol=1e-4)


def test_too_many_frequencies() -> None:
    with pytest.raises(ValueError, match="a period of 16 positions has 9 frequencies, fewer than modes=10"):
        FourierFilter(3, 16, modes=10)
    with pytest.raises(ValueError, match="got 0"):
        FourierFilter(3, 16, period=0)


@pytest.mark.parametrize("causal", [True, False], ids=["causal", "two-sided"])
def test_ckconv_is_an_ffn_of_the_position(causal: bool) -> None:
    h = CKConv(3, 21, 2, causal=causal, width=8, dtype=torch.float64)
    w = {name: p.detach().clone().requires_grad_() for name, p in h.named_parameters()}
    x = torch.linspace(-1, 1, 21, dtype=torch.float64)[:, None]
    for i in range(2):
        x = torch.sin(w["ffn.freq"] * (x @ w[f"ffn.hidden.{i}.weight"].T + w[f"ffn.hidden.{i}.bias"]))
    want = (x @ w["ffn.out.weight"].T).view(21, -1, 3).transpose(0, 1)
    if not causal:
        want = torch.cat([want[2:, 1:].flip(1), want[:2]], dim=1)
    got, probe = h(21), torch.randn_like(want)
    torch.testing.assert_close(got, want)
    got.backward(probe)
    want.backward(probe)
    for name, p in h.named_parameters():
        torch.testing.assert_close(p.grad, w[name].grad)
    assert "window.deltas" in h.state_dict()
    assert (h.window.deltas == 0).all()


def test_explicit_filters_are_their_weights() -> None:
    h = ExplicitFilter(3, 20, 2, taps=7, dtype=torch.float64)
    assert torch.equal(h(20), h.weight)
    assert torch.equal(h(4), h.weight[:, :4])
