"""Attention as a mixer, against the softmax written out."""

from __future__ import annotations

import pytest
import torch

from helpers.definitions import assert_defined
from hyena.mixers import Attention, _past


def test_it_is_softmax_attention() -> None:
    layer, u = Attention(8, num_heads=2).double(), torch.randn(2, 5, 8, dtype=torch.float64)
    q, k, v = layer.in_proj(u).chunk(3, dim=2)
    heads = []
    for at in (slice(0, 4), slice(4, 8)):
        scores = q[..., at] @ k[..., at].mT / 2.0
        scores = scores.masked_fill(torch.ones(5, 5).triu(1).bool(), -torch.inf)
        heads.append(scores.softmax(-1) @ v[..., at])
    torch.testing.assert_close(layer(u), layer.out_proj(torch.cat(heads, dim=2)))


def test_heads_that_do_not_divide_the_width_raise() -> None:
    with pytest.raises(ValueError, match="d_model=10 is not a multiple of num_heads=4"):
        Attention(10, num_heads=4)


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
@pytest.mark.parametrize("scaling", [1.0, 8.0])
def test_rotary_positions_and_groups_of_queries(kv_heads: int, scaling: float) -> None:
    rotary = {"rotary_base": 50.0, "rotary_scaling": scaling}
    layer = Attention(16, num_heads=4, num_kv_heads=kv_heads, **rotary, out_bias=False, dtype=torch.float64)
    assert layer.in_proj.out_features == 16 + 2 * 4 * kv_heads
    assert layer.out_proj.bias is None
    assert not layer.needs_positions

    def definition(u: torch.Tensor) -> torch.Tensor:
        q, k, v = layer.in_proj(u).split([16, 4 * kv_heads, 4 * kv_heads], dim=2)
        at, heads = torch.arange(u.size(1), dtype=torch.float64) / scaling, []
        for m in range(4):
            own = slice(4 * (m // (4 // kv_heads)), 4 * (m // (4 // kv_heads)) + 4)
            query, key = q[:, :, 4 * m : 4 * m + 4], k[:, :, own]
            scores = torch.zeros(u.size(0), u.size(1), u.size(1), dtype=torch.float64)
            for i in range(2):  # the pair (i, i + 2) of both, turned by their distance
                turn = (at[:, None] - at) * 50.0 ** (-i / 2)
                a, b = query[:, :, None, [i, i + 2]].unbind(-1)
                c, d = key[:, None, :, [i, i + 2]].unbind(-1)
                scores = scores + (a * c + b * d) * turn.cos() + (a * d - b * c) * turn.sin()
            scores = (scores / 2).masked_fill(torch.ones(u.size(1), u.size(1)).triu(1).bool(), -torch.inf)
            heads.append(scores.softmax(-1) @ v[:, :, own])
        return layer.out_proj(torch.cat(heads, dim=2))

    assert_defined(layer, definition, 9)


@torch.no_grad()
def test_positions_far_from_the_start_are_exact() -> None:
    """Rotary positions are relative: in float32 a row is the same wherever it stands."""
    layer = Attention(32, num_heads=2, rotary_base=10_000.0)
    u = torch.randn(1, 8, 32)
    q, k, _ = layer._heads(u, torch.arange(8))
    near = q @ k.mT
    q, k, _ = layer._heads(u, torch.arange(8) + 1_000_000)
    assert (q @ k.mT - near).abs().max() < 1e-5


@pytest.mark.parametrize("kv_heads", [4, 2])
@pytest.mark.parametrize("padded", [False, True])
@torch.no_grad()
def test_chunks_in_blocks_of_keys(kv_heads: int, padded: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"_AT_ONCE": 0, "_QUERIES": 5, "_SCORES": 1, "_LEAST_KEYS": 7, "_MOST_KEYS": 7}.items():
        monkeypatch.setattr(_past, name, value)
    layer = Attention(16, 64, num_heads=4, num_kv_heads=kv_heads, rotary_base=50.0, dtype=torch.float64).eval()
    layer.in_proj.weight.mul_(5)
    u, keep = torch.randn(2, 60, 16, dtype=torch.float64), None
    if padded:
        keep = torch.arange(60) >= torch.tensor([[0], [17]])
    want, state, got = layer(u, keep), layer.init_state(2), []
    for part in torch.arange(60).split([9, 1, 23, 2, 25]):
        got.append(layer.prefill(u[:, part], state, None if keep is None else keep[:, part])[0])
    apart = (torch.cat(got, dim=1) - want).abs().amax(-1)
    assert (apart if keep is None else apart[keep]).max() < 1e-12


@torch.no_grad()
def test_scores_beyond_the_range_of_half_precision() -> None:
    """Large scores, and blocks whose maxima differ by more than an exponential can hold."""
    q = 300 * torch.randn(1, 2, 40, 8)
    k, v = torch.cat([torch.randn(1, 2, 50, 8), 300 * torch.randn(1, 2, 50, 8)], dim=2), torch.randn(1, 2, 100, 8)
    scores = (q.double() @ k.double().mT * 8**-0.5).masked_fill(torch.ones(40, 100).triu(61).bool(), -torch.inf)
    want = scores.softmax(-1) @ v.double()
    got = _past._block(q, k, v, None)
    assert (got - want).abs().max() < 1e-4
    assert not _past._block(q, k, v, torch.zeros(1, 100, dtype=torch.bool)).any()


def test_rotary_arguments_that_do_not_fit() -> None:
    for options, words in (
        ({"rotary_scaling": 2.0}, "pass rotary_base, too"),
        ({"num_kv_heads": 3}, "num_heads=2 is not a multiple of num_kv_heads=3"),
        ({"rotary_base": 0.0}, "rotary_base must be a positive number, got 0.0"),
        ({"rotary_base": 10.0, "rotary_frequencies": [1.0]}, "must be 2 numbers, half of a head's 4 channels, got 1"),
    ):
        with pytest.raises(ValueError, match=words):
            Attention(8, num_heads=2, **options)
    with pytest.raises(ValueError, match="heads of 3 channels have no pairs"):
        Attention(6, num_heads=2, rotary_base=10.0)
    with pytest.raises(ValueError, match="'stretch' is for attention with rotary positions"):
        Attention(8, 10, num_heads=2).extend(20, "stretch")
