"""BigBird: against attention under its dense mask, the blocks that it reads, flex_attention."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from helpers.definitions import assert_close, assert_defined
from hyena.mixers import BigBird


def seen(layer: BigBird, length: int) -> Tensor:
    """The dense mask, from the words of the class: window, global blocks, random ones out of ``table``."""
    mask = torch.zeros(length, length, dtype=torch.bool)
    table = layer.table(-(-length // layer.block)).tolist()
    for t in range(length):
        for s in range(length):
            a, b = t // layer.block, s // layer.block
            window = 0 <= a - b < layer.window if layer.causal else abs(a - b) <= layer.window // 2
            first = b < layer.num_global or (a < layer.num_global and not layer.causal)
            mask[t, s] = (window or first or b in table[a]) and (s <= t or not layer.causal)
    return mask


def dense(layer: BigBird, u: Tensor) -> Tensor:
    q, k, v = (t.unflatten(2, (layer.num_heads, -1)).transpose(1, 2) for t in layer.in_proj(u).chunk(3, dim=2))
    scores = (q @ k.mT / q.size(3) ** 0.5).masked_fill(~seen(layer, u.size(1)), -torch.inf)
    return layer.out_proj((scores.softmax(3) @ v).transpose(1, 2).flatten(2))


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("length", [1, 4, 19, 40])
@pytest.mark.parametrize("blocks", [(1, 0, 0), (3, 1, 2), (1, 2, 3), (5, 0, 1)], ids=str)
def test_is_attention_under_its_mask(blocks: tuple[int, int, int], length: int, causal: bool):
    window, first, random = blocks
    layer = BigBird(
        8, 48, block=4, window=window, num_global=first, num_random=random, num_heads=2, causal=causal,
        dtype=torch.float64,
    )  # fmt: skip
    assert torch.equal(layer.allowed(length), seen(layer, length))
    assert_defined(layer, lambda u: dense(layer, u), length)


@pytest.mark.parametrize("causal", [True, False])
def test_random_blocks_are_drawn_from_all_that_the_rest_leaves(causal: bool):
    layer = BigBird(8, 40 * 4, block=4, num_global=2, num_random=3, causal=causal)
    table = layer.table(40)
    drawn = [set(row) - {-1, 0, 1} - set(range(i - 2, i + 2)) for i, row in enumerate(table.tolist())]
    assert all(max(row, default=-1) < (i if causal else 40) for i, row in enumerate(drawn))
    assert sum(map(len, drawn)) > 60  # of 3 for each of 40, some drawn twice or within the window
    assert len(set().union(*drawn)) > 20
    assert torch.equal(layer.table(40), table)
    assert not torch.equal(BigBird(8, 160, block=4, num_global=2, num_random=3, seed=1, causal=causal).table(40), table)
    if causal:  # the same blocks however many there are
        assert torch.equal(layer.table(20), table[:20])


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("masked", [False, True])
def test_flex_attention_computes_the_same(causal: bool, masked: bool):
    layer = BigBird(32, 64, block=16, num_heads=2, num_random=1, causal=causal).eval()
    flex = BigBird(32, 64, block=16, num_heads=2, num_random=1, causal=causal, flex=True).eval()
    flex.load_state_dict(layer.state_dict())
    u = torch.randn(2, 64, 32)
    mask = torch.arange(64) < torch.tensor([[64], [37]]) if masked else torch.ones(2, 64, dtype=torch.bool)
    with torch.no_grad():
        got, want = (m(u, mask if masked else None)[mask] for m in (flex, layer))
    assert_close(got, want, close=1e-5)
    with pytest.raises(ValueError, match="no gradients on a CPU"):
        flex(u)


def test_wrong_arguments():
    with pytest.raises(ValueError, match="odd number of blocks, got window=4: use 5"):
        BigBird(8, 16, window=4, causal=False)
    with pytest.raises(ValueError, match="num_random must be at least 0, got -1"):
        BigBird(8, 16, num_random=-1)
    with pytest.raises(TypeError, match=r"seed must be an integer, got 0\.5"):
        BigBird(8, 16, seed=0.5)
