"""Attention maps that are found by calling attention with values of our own."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from helpers.attention_models import CausalSelfAttention, TinyGPT
from helpers.conversion import sharpened
from hyena.conversion.layers import layers_of, watched
from hyena.conversion.values import Values, find_values
from hyena.integrations.replace import plan_replacement
from hyena.mixers import Attention

D, M, L = 16, 4, 11  # not a multiple of the channels of a head


def whole(values: Values, args: tuple, kwargs: dict) -> Tensor:
    """The map ``(B, M, L, L)`` from its columns, which come in order."""
    columns = list(values.attend(args, kwargs))
    assert [start for start, _ in columns] == list(range(0, columns[0][1].size(1), columns[0][1].size(3)))
    return torch.cat([block for _, block in columns], dim=3).transpose(1, 2)


def found(model: nn.Module, run, **replacement) -> list[tuple[Values | None, Tensor | None, tuple, dict, object]]:
    """Of each attention call: its values, map, arguments and result."""
    seen = []

    def look(layer, args, kwargs, result) -> None:
        values = find_values(layer.sites[0], args, kwargs)
        seen.append((values, None if values is None else whole(values, args, kwargs), args, kwargs, result))

    with torch.no_grad(), watched(layers_of(plan_replacement(model, **replacement).swaps), look):
        run(model)
    return seen


def recomputed(values: Values, attention: Tensor, x: Tensor) -> Tensor:
    """``W_o A (W_v x + b_v) + b_o`` with loops over heads."""
    v = x @ values.weight.t() + (0 if values.bias is None else values.bias)
    size = v.size(2) // values.heads
    heads = [attention[:, h] @ v[:, :, h * size : (h + 1) * size] for h in range(values.heads)]
    y = torch.cat(heads, dim=2)
    if values.out_weight is None:
        return y
    return y @ values.out_weight.t() + (0 if values.out_bias is None else values.out_bias)


class Holder(nn.Module):
    def __init__(self, attention: nn.Module):
        super().__init__()
        self.attention = attention

    def forward(self, *args, **kwargs):
        return self.attention(*args, **kwargs)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("kv_heads", [M, 2, 1])
def test_our_attention(causal: bool, kv_heads: int) -> None:
    torch.manual_seed(0)
    options = {"num_heads": M, "num_kv_heads": kv_heads, "causal": causal, "rotary_base": 100.0}
    attention = sharpened(Attention(D, L, dtype=torch.float64, **options))
    x = torch.randn(2, L, D, dtype=torch.float64)
    keep = torch.arange(L) < torch.tensor([[L], [L - 4]])
    ((values, weights, _, _, y),) = found(Holder(attention), lambda m: m(x, mask=keep))
    expected = attention.to_matrix(x, keep)[:, :: D // M]
    rows = keep[:, None, :, None]
    torch.testing.assert_close(weights * rows, expected * rows, rtol=0, atol=1e-12)
    assert values.heads == M
    torch.testing.assert_close(recomputed(values, weights, x)[keep], y[keep], rtol=0, atol=1e-12)


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_torch(batch_first: bool, bias: bool) -> None:
    torch.manual_seed(0)
    attention = nn.MultiheadAttention(D, M, bias=bias, batch_first=batch_first, dtype=torch.float64)
    x = torch.randn(2, L, D, dtype=torch.float64)
    padding = torch.arange(L) >= torch.tensor([[L], [L - 4]])
    given = x if batch_first else x.transpose(0, 1)
    run = lambda m: m(given, given, given, key_padding_mask=padding, need_weights=False)  # noqa: E731
    ((values, weights, _, _, result),) = found(Holder(attention), run, l_max=L)
    y = result[0] if batch_first else result[0].transpose(0, 1)
    assert weights.shape == (2, M, L, L)
    torch.testing.assert_close(recomputed(values, weights, x), y, rtol=0, atol=1e-12)


def test_nanogpt() -> None:
    torch.manual_seed(0)
    model = sharpened(TinyGPT(block_size=L)).double().eval()
    x = torch.randn(2, L, D, dtype=torch.float64)
    for values, weights, args, _, y in found(model, lambda m: m(x)):
        torch.testing.assert_close(recomputed(values, weights, args[0]), y, rtol=0, atol=1e-12)
        assert weights.triu(1).count_nonzero() == 0


class Sink(CausalSelfAttention):
    """Its weights do not add up to one: one more entry in the softmax takes some."""

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (t.unflatten(-1, (self.n_head, -1)).transpose(1, 2) for t in self.c_attn(x).chunk(3, dim=-1))
        scores = q @ k.transpose(2, 3) + torch.full((x.size(1), x.size(1)), -torch.inf, dtype=x.dtype).triu(1)
        weights = torch.cat([scores, torch.zeros_like(scores[..., :1])], dim=-1).softmax(-1)[..., :-1]
        return self.c_proj((weights @ v).transpose(1, 2).flatten(2))


def test_attention_that_is_not_an_average_is_not_found() -> None:
    model = TinyGPT(Sink, block_size=L).double().eval()
    seen = found(model, lambda m: m(torch.randn(2, L, D, dtype=torch.float64)), causal=True)
    assert [values for values, *_ in seen] == [None] * len(seen)


def test_transformers() -> None:
    pytest.importorskip("transformers")
    from helpers.transformers_models import KINDS

    for name, kind in KINDS.items():
        model = kind.make("eager")
        for values, weights, args, kwargs, result in found(
            model, lambda m, k=kind: k.run(m, **k.inputs()), **kind.options
        ):
            assert values is not None, name
            maps = [t for t in result if isinstance(t, Tensor) and t.shape == weights.shape]
            if not maps:  # of modules that return no map
                x = args[0] if args else kwargs["hidden_states"]
                torch.testing.assert_close(recomputed(values, weights, x), result[0], rtol=0, atol=1e-9)
                continue
            torch.testing.assert_close(weights, maps[-1], rtol=0, atol=1e-12, msg=name)
