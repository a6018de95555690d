"""Hyena's start from attention: mean diagonals, filters fitted to them, projections."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hyena.conversion.start import Diagonals, fit_filters, start_from, why_not
from hyena.conversion.values import Values
from hyena.filters import ExplicitFilter, HyenaFilter
from hyena.mixers import H3, HyenaOperator

D, M, L = 16, 4, 12


def means_by_loops(maps: list[Tensor], keeps: list[Tensor | None], length: int) -> Tensor:
    sums, counts = torch.zeros(M, 2 * length - 1).double(), torch.zeros(2 * length - 1).double()
    for a, keep in zip(maps, keeps, strict=True):
        for b in range(a.size(0)):
            for t in range(a.size(2)):
                for s in range(a.size(3)):
                    if keep is None or (keep[b, t] and keep[b, s]):
                        sums[:, t - s + length - 1] += a[b, :, t, s].double()
                        counts[t - s + length - 1] += 1
    return sums / counts.clamp_min(1)


def test_means_of_diagonals() -> None:
    torch.manual_seed(0)
    shapes, found = [(2, M, L, L), (1, M, 5, 5), (2, M, L + 2, L + 2)], Diagonals()
    maps = [torch.rand(shape) for shape in shapes]
    keeps = [torch.arange(L) >= torch.tensor([[0], [4]]), None, torch.arange(L + 2) < torch.tensor([[3], [L]])]
    for a, keep in zip(maps, keeps, strict=True):
        poisoned = a if keep is None else a.masked_fill(~keep[:, None, None, :], torch.nan)
        for start in range(0, a.size(3), 5):
            found.add(poisoned[..., start : start + 5].transpose(1, 2), start, keep)
    expected = means_by_loops(maps, keeps, L + 2)
    torch.testing.assert_close(found.means(causal=False), expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(found.means(causal=True), expected[:, L + 1 :], rtol=0, atol=1e-12)


def decaying(causal: bool) -> Tensor:
    """Mean diagonals ``(M, K)``: of each head another decay."""
    lag = torch.arange(L).double() if causal else torch.arange(-(L - 1), L).double()
    rate = torch.tensor([0.2, 0.5, 1.0, 2.0])[:, None].double()
    return (1 + 0.3 * lag.sign()) * torch.exp(-rate * lag.abs())


def by_definition(values: Values, means: Tensor, x: Tensor, causal: bool) -> Tensor:
    """``W_o T(h) (W_v x + b_v) + b_o`` with an explicit Toeplitz matrix for each head."""
    v = x @ values.weight.t() + values.bias
    y = torch.zeros_like(v)
    for head in range(M):
        channels = slice(head * D // M, (head + 1) * D // M)
        for t in range(L):
            for s in range(t + 1 if causal else L):
                y[:, t, channels] += means[head, t - s if causal else t - s + L - 1] * v[:, s, channels]
    return y @ values.out_weight.t() + values.out_bias


def random_values() -> Values:
    torch.manual_seed(1)
    weight, out = torch.randn(2, D, D, dtype=torch.float64) * D**-0.5
    bias, out_bias = torch.randn(2, D, dtype=torch.float64)
    return Values(M, weight, bias, out, out_bias, lambda args, kwargs: iter(()))


CASES = {
    "plain": {},
    "two-sided": {"causal": False},
    "heads": {"num_heads": M},
    "heads, two-sided": {"num_heads": M, "causal": False},
    "third order": {"order": 3},
    "heads, third order": {"num_heads": M, "order": 3},
    "fourth order": {"order": 4},
    "value filter": {"value_filter": True},
    "groups": {"filter_groups": M},
    "bias in the projection": {"short_bias": False},
}


@pytest.mark.parametrize("case", CASES)
def test_starts_as_the_average_of_attention(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With gates that do not depend on the input, exactly; the taps are explicit, so that the fit is."""
    monkeypatch.setattr("hyena.conversion.start.GATE_SCALE", 0.0)
    options = {"filter": ExplicitFilter, "dtype": torch.float64} | CASES[case]
    torch.manual_seed(0)
    mixer = HyenaOperator(D, L, **options)
    means, values = decaying(mixer.causal), random_values()
    error = start_from(mixer, values, means)
    assert error < 1e-3
    x = torch.randn(2, L, D, dtype=torch.float64)
    expected = by_definition(values, means, x, mixer.causal)
    torch.testing.assert_close(mixer(x), expected, rtol=0, atol=2e-2)
    assert (mixer(x) - expected).norm() < 3e-3 * expected.norm()


@pytest.mark.parametrize("causal", [True, False])
def test_fits_an_implicit_filter(causal: bool) -> None:
    torch.manual_seed(0)
    mixer = HyenaOperator(D, L, causal=causal, filter=lambda *a, **k: HyenaFilter(*a, freq=1.0, **k))
    means = decaying(causal)
    error = fit_filters(mixer, means)
    h = mixer.conv.matrix_taps(L)[0].double().detach()  # (K, G)
    zero = 0 if causal else L - 1
    h[zero] += mixer.conv.bias[0].detach()
    expected = means.repeat_interleave(D // M, dim=0).t()
    assert error < 0.1
    assert (h - expected).norm() / expected.norm() == pytest.approx(error, abs=1e-5)
    torch.testing.assert_close(h[zero], expected[zero], rtol=0, atol=1e-5)


def test_filters_of_fewer_channels_than_heads_have_their_mean() -> None:
    mixer = HyenaOperator(D, L, filter_groups=2, filter=ExplicitFilter)
    means = decaying(True)
    fit_filters(mixer, means)
    h = mixer.conv.matrix_taps(L)[0] + torch.nn.functional.pad(mixer.conv.bias[:, :: D // 2], (0, 0, 0, L - 1))
    torch.testing.assert_close(h[:, 0].double(), means[:2].mean(0), rtol=0, atol=1e-2)
    torch.testing.assert_close(h[:, 1].double(), means[2:].mean(0), rtol=0, atol=1e-2)


def test_filters_alone_leave_the_rest() -> None:
    mixer = HyenaOperator(D, L)
    before = {name: p.clone() for name, p in mixer.named_parameters()}
    start_from(mixer, random_values(), decaying(True), projections=False)
    changed = {name.split(".")[0] for name, p in mixer.named_parameters() if not torch.equal(p, before[name])}
    assert changed == {"conv"}


def test_a_filter_of_few_taps() -> None:
    mixer = HyenaOperator(D, L, filter=lambda *a, **k: ExplicitFilter(*a, taps=4, **k))
    error = fit_filters(mixer, decaying(True))
    left = decaying(True)[:, 4:].norm() / decaying(True).norm()
    assert error == pytest.approx(left.item(), abs=1e-3)


@pytest.mark.parametrize(
    ("mixer", "words"),
    [
        (lambda: H3(D, L), "H3 is no HyenaOperator"),
        (lambda: HyenaOperator(D, L, order=1), "order=1"),
        (lambda: HyenaOperator(D, L, activation="gelu"), "activation"),
        (lambda: HyenaOperator(D, L, bias=False, short_bias=False), "short_bias"),
        (lambda: HyenaOperator(D, L, bias=False), None),
    ],
)
def test_what_cannot_start_so(mixer, words: str | None) -> None:
    reason = why_not(mixer())
    assert reason is None if words is None else words in reason
