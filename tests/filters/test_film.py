"""Conditioned filters: against their equations written out, row by row."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from helpers.definitions import assert_close
from hyena.filters import FiLMFilter, HyenaFilter, implicit

C, K, F, Q = 3, 12, 2, 4


def make(causal: bool = True, **settings: object) -> FiLMFilter:
    options: dict = {"condition_dim": Q, "emb_dim": 5, "width": 6, "causal": causal, "dtype": torch.float64}
    h = FiLMFilter(C, K, F, **options | settings)
    torch.nn.init.normal_(h.film.weight, std=0.2)
    return h


def one_lag(h: FiLMFilter, lag: int, condition: Tensor) -> Tensor:
    """All that the FFN makes for one lag and one row, from the weights alone."""
    time = lag / (K - 1)
    features = [time]
    for wave in (math.cos, lambda x: -math.sin(x)):
        features += [wave(f * 2 * math.pi * lag / K) for f in (1e-4, 1.0)]
    x = torch.tensor(features, dtype=torch.float64)
    film = (h.film.weight @ condition).view(len(h.ffn.hidden), 2, -1)
    for layer, (scale, shift) in zip(h.ffn.hidden, film, strict=True):
        x = torch.sin(h.ffn.freq * ((1 + scale) * (layer.weight @ x + layer.bias) + shift))
    return (h.ffn.out.weight @ x) * torch.exp(-time * h.window.deltas.abs())


def definition(h: FiLMFilter, length: int, condition: Tensor) -> Tensor:
    rows = []
    for c in condition:
        lags = torch.stack([one_lag(h, lag, c) for lag in range(length)]).view(length, -1, C)  # (K, F or 2 F, C)
        ahead = [lags[:, f] for f in range(F)]
        if not h.causal:
            ahead = [torch.cat([lags[1:, F + f].flip(0), side]) for f, side in enumerate(ahead)]
        rows.append(torch.stack(ahead))
    return torch.stack(rows)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("length", [1, 2, K])
@pytest.mark.parametrize("inner_layers", [0, 2])
def test_is_its_equations(length: int, causal: bool, inner_layers: int) -> None:
    h = make(causal, inner_layers=inner_layers)
    condition = torch.randn(3, Q, dtype=torch.float64, requires_grad=True)
    got, want = h(length, condition), definition(h, length, condition)
    assert got.shape == (3, F, length if causal else 2 * length - 1, C)
    assert_close(got, want, "taps")
    probe = torch.randn_like(got)
    names, weights = zip(*h.named_parameters(), strict=True)
    grads = [torch.autograd.grad((y * probe).sum(), (condition, *weights), materialize_grads=True) for y in (got, want)]
    for name, a, b in zip(("condition", *names), *grads, strict=True):
        assert_close(a, b, name)


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 5), st.integers(1, K), st.booleans())
def test_rows_do_not_depend_on_each_other(rows: int, length: int, causal: bool) -> None:
    h, condition = make(causal), torch.randn(rows, Q, dtype=torch.float64)
    together = h(length, condition)
    for b in range(rows):
        torch.testing.assert_close(h(length, condition[b : b + 1])[0], together[b])


@pytest.mark.parametrize("causal", [True, False])
def test_without_a_condition_and_at_the_start_it_is_hyenas(causal: bool) -> None:
    torch.manual_seed(3)
    plain = HyenaFilter(C, K, F, emb_dim=5, width=6, causal=causal, dtype=torch.float64)
    torch.manual_seed(3)
    h = FiLMFilter(C, K, F, condition_dim=Q, emb_dim=5, width=6, causal=causal, dtype=torch.float64)
    want, condition = plain(K), torch.randn(2, Q, dtype=torch.float64)
    torch.testing.assert_close(h(K), want)
    torch.testing.assert_close(h(K, condition), want.expand(2, -1, -1, -1))
    torch.nn.init.normal_(h.film.weight)
    torch.testing.assert_close(h(K), want)
    torch.testing.assert_close(h(K, torch.zeros_like(condition)), want.expand(2, -1, -1, -1))
    assert (h(K, condition) - want).abs().max() > 0.01
    h.reset_parameters()
    assert not h.film.weight.any()


def test_many_taps_keep_no_activations(monkeypatch: pytest.MonkeyPatch) -> None:
    h, condition = make(), torch.randn(4, Q, dtype=torch.float64, requires_grad=True)
    kept: list[int] = []

    def run() -> tuple[Tensor, Tensor]:
        kept.append(0)

        def pack(x: Tensor) -> Tensor:
            kept[-1] += x.numel()
            return x

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            taps = h(10, condition)
        return taps.detach(), torch.autograd.grad(taps.square().sum(), condition)[0]

    first = run()
    monkeypatch.setattr(implicit, "_RECOMPUTE_FROM", 40)
    for a, b in zip(run(), first, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)
    assert kept[1] < kept[0] / 5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_taps_are_float32(dtype: torch.dtype) -> None:
    h = FiLMFilter(C, K, F, condition_dim=Q, dtype=dtype)
    condition = torch.randn(2, Q).to(dtype)
    with torch.autocast("cpu", torch.bfloat16):
        assert h(K, condition).dtype == h(K).dtype == torch.float32


def test_bad_conditions_name_the_numbers() -> None:
    h = make()
    for bad in (torch.randn(2, Q + 1), torch.randn(Q), torch.randn(2, 1, Q), torch.ones(2, Q, dtype=torch.long)):
        with pytest.raises(ValueError, match=rf"\(B, {Q}\).*got {bad.dtype} of shape \({bad.size(0)}"):
            h(K, bad)
    with pytest.raises(ValueError, match=f"{K + 1} taps .* l_max={K}"):
        h(K + 1, torch.randn(2, Q))
    with pytest.raises(ValueError, match="condition_dim >= 1, got 0"):
        FiLMFilter(C, K, condition_dim=0)
    with pytest.raises(TypeError, match=r"condition_dim must be an int, got 1\.5"):
        FiLMFilter(C, K, condition_dim=1.5)
    with pytest.raises(TypeError, match=r"condition must be a tensor \(B, Q\), .* got a list"):
        h(K, [[0.0] * Q])
    with pytest.raises(ValueError, match="HyenaFilter, which takes none"):
        HyenaFilter(C, K).check_condition(torch.randn(2, Q))
