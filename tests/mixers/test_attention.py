"""Attention as a mixer, against the softmax written out."""

from __future__ import annotations

import pytest
import torch

from hyena.mixers import Attention


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
