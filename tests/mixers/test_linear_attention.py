"""Linear attention: against its weights written out, features against what they stand for."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from helpers.definitions import assert_close, assert_defined
from hyena.mixers import LinearAttention


def weights(layer: LinearAttention, u: Tensor) -> tuple[Tensor, Tensor]:
    """Products of features ``(B, M, L, L)`` one pair at a time, and values, all positions kept."""
    q, k, v = layer.in_proj(u).chunk(3, dim=2)
    size = layer.d_model // layer.num_heads
    pairs = torch.stack(
        [
            (layer.features(q[:, :, None, at]) * layer.features(k[:, None, :, at])).sum(-1)
            for at in (slice(i, i + size) for i in range(0, layer.d_model, size))
        ],
        dim=1,
    )
    return pairs, v


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("features", ["elu", "relu", "softmax", "taylor", nn.Softplus()], ids=str)
def test_is_its_weights_times_values(features, normalize: bool, causal: bool):
    layer = LinearAttention(
        12, num_heads=3, feature_map=features, normalize=normalize, causal=causal, chunk=4, dtype=torch.float64
    )

    def definition(u: Tensor) -> Tensor:
        a, v = weights(layer, u)
        if causal:
            a = torch.where(torch.ones(u.size(1), u.size(1)).tril() > 0, a, 0.0)
        if normalize:
            a = a / (a.sum(-1, keepdim=True) + layer.eps)
        heads = [a[:, m] @ v[..., 4 * m : 4 * m + 4] for m in range(3)]
        return layer.out_proj(torch.cat(heads, dim=2))

    assert_defined(layer, definition, length=11)


def test_taylor_features_give_exp_to_second_order():
    layer, x, y = LinearAttention(8, feature_map="taylor"), torch.randn(5, 8), torch.randn(5, 8)
    s = (x * y).sum(-1) / math.sqrt(8)
    assert_close((layer.features(x) * layer.features(y)).sum(-1), 1 + s + s**2 / 2, close=1e-5)


def test_a_loud_future_does_not_reach_the_past():
    layer = LinearAttention(8, chunk=4, bias=False).eval()
    u = torch.randn(1, 12, 8)
    loud = u.clone()
    loud[:, 6:] *= 1e6
    assert torch.equal(layer(loud)[:, :6], layer(u)[:, :6])


def test_wrong_arguments():
    with pytest.raises(ValueError, match=r"feature_map must be .*'elu'.*'cosine'"):
        LinearAttention(8, feature_map="cosine")
    with pytest.raises(ValueError, match="d_model=10 is not a multiple of num_heads=4"):
        LinearAttention(10, num_heads=4)
    for eps in (-5, float("nan"), "x"):
        with pytest.raises(ValueError, match=f"eps must be a finite number, not negative, got {eps!r}"):
            LinearAttention(8, eps=eps)
    with pytest.raises(ValueError, match=r"dropout must be .*1.5"):
        LinearAttention(8, dropout=1.5)
    layer = LinearAttention(8, 4, dropout=0.5)
    state = layer.init_state(1)
    with pytest.raises(ValueError, match=r"training mode .*dropout=0.5"):
        layer.step(torch.randn(1, 8), state)
