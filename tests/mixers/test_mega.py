"""Mega: against its equations one row at a time, and its moving average against the authors' numbers."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from helpers.definitions import assert_close, assert_defined
from helpers.released import golden
from helpers.state_spaces import convolution
from hyena.filters import EMA
from hyena.mixers import Mega


def averages(layer: Mega, u: Tensor) -> Tensor:
    """The damped average as dense matrices of its taps, two-sided with a second row of weights."""
    f = layer.conv.filter
    p, a = f.delta.sigmoid(), f.alpha.sigmoid()
    lag = torch.arange(u.size(1), dtype=torch.float64)
    taps = ((p * f.beta * f.gamma)[..., None] * (1 - p * a)[..., None] ** lag).sum(2) / f.num_modes**0.5  # (R, D, L)
    y = convolution(taps[0], u) + layer.conv.bias[0] * u
    return y if layer.causal else y + convolution(taps[1], u.flip(1)).flip(1)


def definition(layer: Mega, u: Tensor) -> Tensor:
    d, z, v = layer.d_model, layer.key_channels, layer.value_channels
    x = F.silu(averages(layer, u))
    update, base, reset, h = layer.gates(x).split([d, z, v, d], dim=2)
    q, k = (F.silu(base) * layer.scale[i] + layer.shift[i] for i in (0, 1))
    values = F.silu(layer.in_proj(u))
    out = []
    for t in range(u.size(1)):
        first = t - t % layer.chunk
        last = t + 1 if layer.causal else min(first + layer.chunk, u.size(1))
        zero = 0 if layer.causal else layer.chunk - 1
        bias = layer.lag_bias[[t - s + zero for s in range(first, last)]]
        weights = (torch.einsum("bz,bsz->bs", q[:, t], k[:, first:last]) / z**0.5 + bias).softmax(1)
        out.append(torch.einsum("bs,bsv->bv", weights, values[:, first:last]))
    h = F.silu(h + layer.out_proj(F.silu(reset) * torch.stack(out, dim=1)))
    gate = update.sigmoid()
    return gate * h + (1 - gate) * u


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("length", [1, 4, 11])
def test_is_its_equations(length: int, causal: bool):
    layer = Mega(6, 16, chunk=4, filter=partial(EMA, modes=3), causal=causal, dtype=torch.float64)
    torch.nn.init.normal_(layer.lag_bias)
    torch.nn.init.normal_(layer.shift)
    assert_defined(layer, lambda u: definition(layer, u), length)


@pytest.mark.parametrize("kind", ["causal", "bi"])
def test_moving_average_is_the_authors(kind: str):
    want = golden(f"mega_ema_{kind}").tensors
    layer = Mega(5, 37, filter=partial(EMA, modes=3), causal=kind == "causal", dtype=torch.float64)
    with torch.no_grad():
        for name in ("delta", "alpha", "beta", "gamma"):
            weight = getattr(layer.conv.filter, name)
            weight.copy_(want[f"param.{name}"].reshape(weight.shape))
        layer.conv.bias.copy_(want["param.omega"])
    x = F.silu(layer.conv(want["input"].transpose(0, 1)))
    assert_close(x.transpose(0, 1), want["output"])


def test_wrong_arguments():
    with pytest.raises(ValueError, match="chunk must be at least 1, got 0"):
        Mega(8, 16, chunk=0)
    with pytest.raises(ValueError, match="key_channels must be at least 1, got 0"):
        Mega(8, 16, key_channels=0)
