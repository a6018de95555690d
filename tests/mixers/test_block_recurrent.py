"""Block-recurrent attention: against one position and one block after the other."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from helpers.definitions import assert_defined
from hyena.mixers import BlockRecurrent


def heads(layer: BlockRecurrent, x: Tensor) -> Tensor:
    return x.reshape(x.size(0), layer.num_heads, -1)


def attend(layer: BlockRecurrent, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
    """Of one row: ``(n, D)``, ``(m, D)``, ``(m, D)``."""
    q, k, v = (heads(layer, t) for t in (q, k, v))
    scores = torch.einsum("nme,sme->nms", q, k) / q.size(2) ** 0.5
    return torch.einsum("nms,sme->nme", (scores if bias is None else scores + bias).softmax(-1), v).flatten(1)


def one_row(layer: BlockRecurrent, u: Tensor) -> Tensor:
    d, w = layer.d_model, layer.block
    local, outer, k, v = layer.in_proj(u).split(d, dim=1)
    c, out = layer.vectors, []
    for start in range(0, u.size(0), w):
        qs, qb, ks, vs = layer.state_proj(layer.norm(c + layer.places)).split(d, dim=1)
        for t in range(start, min(start + w, u.size(0))):
            first = max(0, t - w + 1)
            bias = layer.lag_bias[:, [t - s for s in range(first, t + 1)]]
            near = attend(layer, local[t : t + 1], k[first : t + 1], v[first : t + 1], bias)
            out.append(torch.cat([near, attend(layer, outer[t : t + 1], ks, vs)], dim=1))
        block = slice(start, start + w)
        new = layer.state_out(torch.cat([attend(layer, qs, ks, vs), attend(layer, qb, k[block], v[block])], dim=1))
        if layer.gate == "fixed":
            g = layer.gate_bias.sigmoid()
            c = g * c + (1 - g) * new
        else:
            z, i, f = new.split(d, dim=1)
            c = c * (f + 1).sigmoid() + z.tanh() * (i - 1).sigmoid()
    return layer.out_proj(torch.cat(out))


@pytest.mark.parametrize("gate", ["fixed", "lstm"])
@pytest.mark.parametrize("length", [1, 4, 5, 14])
def test_is_its_recurrence(length: int, gate: str):
    layer = BlockRecurrent(8, block=4, num_states=3, num_heads=2, gate=gate, dtype=torch.float64)
    torch.nn.init.normal_(layer.lag_bias)
    assert_defined(layer, lambda u: torch.stack([one_row(layer, row) for row in u]), length)


def test_vectors_carry_what_the_window_has_left():
    layer = BlockRecurrent(8, block=4, num_states=3, dtype=torch.float64)
    u = torch.randn(1, 20, 8, dtype=torch.float64, requires_grad=True)
    layer(u)[:, -1].sum().backward()
    assert u.grad[:, 0].abs().max() > 0


def test_wrong_arguments():
    with pytest.raises(ValueError, match="causal=False is not possible"):
        BlockRecurrent(8, causal=False)
    with pytest.raises(ValueError, match=r"gate must be one of .*'fixed'.*'gru'"):
        BlockRecurrent(8, gate="gru")
    with pytest.raises(ValueError, match="num_states must be at least 1, got 0"):
        BlockRecurrent(8, num_states=0)
