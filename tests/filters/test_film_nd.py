"""Conditioned filters over grids: against their equations written out, lag by lag and row by row."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from helpers.definitions import assert_close
from hyena.filters import FiLMFilterND, HyenaFilterND, implicit_nd

C, F, Q = 3, 2, 4
SIZES = [(6,), (4, 3), (3, 2, 2)]


def make(size: tuple[int, ...], **settings: object) -> FiLMFilterND:
    options: dict = {"condition_dim": Q, "emb_dim": 5, "width": 6, "inner_layers": 1, "dtype": torch.float64}
    h = FiLMFilterND(C, size, F, **options | settings)
    torch.nn.init.normal_(h.film.weight, std=0.2)
    with torch.no_grad():
        h.window.rates.add_(torch.rand_like(h.window.rates))
    return h


def definition(h: FiLMFilterND, size: tuple[int, ...], condition: Tensor) -> Tensor:
    taps = torch.zeros(condition.size(0), F, *(2 * n - 1 for n in size), C, dtype=torch.float64)
    for lag in itertools.product(*(range(1 - n, n) for n in size)):
        features, decay, signs = [], torch.ones(h.ffn.out.out_features, dtype=torch.float64), 0
        for axis, (k, n) in enumerate(zip(lag, size, strict=True)):
            t, w = abs(k) / max(h.size[axis] - 1, 1), 2 * math.pi * abs(k) / h.size[axis]
            features += [t, *(math.cos(f * w) for f in (1e-4, 1.0)), *(-math.sin(f * w) for f in (1e-4, 1.0))]
            signs = 2 * signs + (k < 0)
            decay = decay * torch.exp(-t * h.window.rates[axis])
            assert n <= h.size[axis]
        for b, c in enumerate(condition):
            x = torch.tensor(features, dtype=torch.float64)
            film = (h.film.weight @ c).view(len(h.ffn.hidden), 2, -1)
            for layer, (scale, shift) in zip(h.ffn.hidden, film, strict=True):
                x = torch.sin(h.ffn.freq * ((1 + scale) * (layer.weight @ x + layer.bias) + shift))
            out = ((h.ffn.out.weight @ x) * decay).view(2 ** len(size), F, C)[signs]
            taps[(b, slice(None), *(k + n - 1 for k, n in zip(lag, size, strict=True)))] = out
    return taps


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_is_its_equations(size: tuple[int, ...]) -> None:
    h = make(size)
    condition = torch.randn(2, Q, dtype=torch.float64, requires_grad=True)
    got, want = h(size, condition), definition(h, size, condition)
    assert_close(got, want, "taps")
    probe = torch.randn_like(got)
    names, weights = zip(*h.named_parameters(), strict=True)
    grads = [torch.autograd.grad((y * probe).sum(), (condition, *weights)) for y in (got, want)]
    for name, a, b in zip(("condition", *names), *grads, strict=True):
        assert_close(a, b, name)
    smaller = tuple(max(1, n - 1) for n in size)
    assert_close(h(smaller, condition), definition(h, smaller, condition), "taps of a smaller grid")


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_without_a_condition_and_at_the_start_it_is_hyenas(size: tuple[int, ...]) -> None:
    torch.manual_seed(3)
    plain = HyenaFilterND(C, size, F, emb_dim=5, width=6, dtype=torch.float64)
    torch.manual_seed(3)
    h = FiLMFilterND(C, size, F, condition_dim=Q, emb_dim=5, width=6, dtype=torch.float64)
    want, condition = plain(size), torch.randn(2, Q, dtype=torch.float64)
    torch.testing.assert_close(h(size), want)
    torch.testing.assert_close(h(size, condition), want.expand(2, *want.shape))
    torch.nn.init.normal_(h.film.weight)
    torch.testing.assert_close(h(size), want)
    torch.testing.assert_close(h(size, torch.zeros_like(condition)), want.expand(2, *want.shape))
    assert (h(size, condition) - want).abs().max() > 0.01
    assert h(size, condition[:0]).shape == (0, *want.shape)


def test_many_taps_keep_no_activations(monkeypatch: pytest.MonkeyPatch) -> None:
    h, condition = make((4, 3)), torch.randn(3, Q, dtype=torch.float64, requires_grad=True)
    results = []
    for limit in (1 << 16, 36):
        monkeypatch.setattr(implicit_nd, "_RECOMPUTE_FROM", limit)
        kept = []
        with torch.autograd.graph.saved_tensors_hooks(lambda x, kept=kept: kept.append(x.numel()) or x, lambda x: x):
            taps = h((4, 3), condition)
        results.append((taps.detach(), torch.autograd.grad(taps.square().sum(), condition)[0], sum(kept)))
    torch.testing.assert_close(results[0][:2], results[1][:2], rtol=0, atol=0)
    assert results[1][2] < results[0][2]


def test_bad_conditions_name_the_numbers() -> None:
    h = make((4, 3))
    with pytest.raises(ValueError, match=rf"\(B, {Q}\).*shape \(2, {Q + 1}\)"):
        h((4, 3), torch.randn(2, Q + 1))
    with pytest.raises(ValueError, match=r"size=\(4, 3\).*not \(5, 3\)"):
        h((5, 3), torch.randn(2, Q))
    with pytest.raises(ValueError, match="condition_dim >= 1, got 0"):
        FiLMFilterND(C, (4, 3), condition_dim=0)
