"""Attention-free transformers: against their weights written out, with keys of any size."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor

from helpers.definitions import assert_close, assert_defined
from hyena.mixers import AFT, AFTConv, aft


def averages(layer: AFT | AFTConv, w: Tensor, u: Tensor) -> Tensor:
    """``w``: the weight of each pair of positions, ``(L, L)`` or ``(L, L, D)``."""
    q, k, v = layer.in_proj(u).chunk(3, dim=2)
    scores = k[:, None] + (w[..., None] if w.dim() == 2 else w)  # (B, t, s, D)
    if layer.causal:
        later = torch.ones(u.size(1), u.size(1)).triu(1) > 0
        scores = scores.masked_fill(later[..., None], -torch.inf)
    return layer.out_proj(torch.sigmoid(q) * (scores.softmax(2) * v[:, None]).sum(2))


def lags(layer: AFTConv, length: int) -> Tensor:
    w = torch.zeros(length, length, layer.d_model, dtype=torch.float64)
    each = layer.d_model // layer.num_heads
    for t in range(length):
        for s in range(length):
            if abs(t - s) < layer.window and (s <= t or not layer.causal):
                w[t, s] = layer.weight[0 if s <= t else 1, :, abs(t - s)].repeat_interleave(each)
    return w


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("length", [1, 2, 11, 16, 29])
def test_aft_is_its_weights_times_values(length: int, causal: bool):
    layer = AFT(4, 30, rank=3, causal=causal, dtype=torch.float64)
    torch.nn.init.normal_(layer.key_factors)
    torch.nn.init.normal_(layer.query_factors)
    assert_defined(
        layer, lambda u: averages(layer, (layer.query_factors @ layer.key_factors.T)[:length, :length], u), length
    )


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("window", [1, 3, 16, 40])
@pytest.mark.parametrize("length", [1, 11, 29])
def test_aft_conv_is_its_weights_times_values(length: int, window: int, causal: bool):
    layer = AFTConv(4, window=window, num_heads=2, causal=causal, dtype=torch.float64)
    torch.nn.init.normal_(layer.weight)
    assert_defined(layer, lambda u: averages(layer, lags(layer, length), u), length)


def test_large_tables_are_formed_in_parts(monkeypatch: pytest.MonkeyPatch):
    layer, u = AFT(4, 40, rank=3, dtype=torch.float64), torch.randn(2, 37, 4, dtype=torch.float64)
    whole, grads = layer(u), torch.autograd.grad(layer(u).square().sum(), [*layer.parameters()])
    monkeypatch.setattr(aft, "_TABLE", 40)
    assert_close(layer(u), whole)
    for a, b in zip(torch.autograd.grad(layer(u).square().sum(), [*layer.parameters()]), grads, strict=True):
        assert_close(a, b)


@pytest.mark.parametrize("make", [partial(AFT, l_max=64), partial(AFTConv, window=4)])
def test_keys_of_any_size_neither_overflow_nor_reach_the_past(make):
    layer = make(d_model=4, bias=False)
    with torch.no_grad():
        layer.in_proj.weight[4:8] = 300 * torch.eye(4)
    u = torch.randn(1, 40, 4)
    y = layer(u)
    assert y.isfinite().all()
    loud = u.clone()
    loud[:, 20:] *= 50
    assert torch.equal(layer(loud)[:, :20], y[:, :20])
    layer(u).sum().backward()
    assert all(p.grad.isfinite().all() for p in layer.parameters())


def test_wrong_arguments():
    with pytest.raises(ValueError, match="rank must be at least 1, got 0"):
        AFT(4, 8, rank=0)
    with pytest.raises(ValueError, match="window must be at least 1, got 0"):
        AFTConv(4, window=0)
    with pytest.raises(ValueError, match="d_model=10 is not a multiple of num_heads=4"):
        AFTConv(10, num_heads=4)
