"""Perceiver AR: against its words one position at a time, decoding, padding."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from helpers.definitions import assert_close
from hyena import HyenaOperator
from hyena.mixers import LinearAttention
from hyena.models import PerceiverAR, PerceiverARConfig

CONFIG = PerceiverARConfig(vocab_size=13, l_max=24, d_model=8, num_latents=5, num_layers=2, num_heads=2)


def build(mixer=None, **at: object) -> PerceiverAR:
    torch.manual_seed(0)
    model = PerceiverAR(CONFIG, **({} if mixer is None else {"mixer": mixer}), dtype=torch.float64, **at)
    with torch.no_grad():
        for p in model.parameters():
            if p.dim() > 1:
                p.mul_(5)
    return model.eval()


def tokens(batch: int, length: int) -> Tensor:
    return torch.randint(13, (batch, length))


def definition(model: PerceiverAR, row: Tensor) -> Tensor:
    """Of one row: each latent's attention to the context written out, then causal blocks."""
    x = model.embedding.weight[row] + model.positions.weight[: len(row)]
    normed = F.layer_norm(x, (8,), model.norm_context.weight, model.norm_context.bias)
    k, v = model.key_value(normed).split(8, dim=1)
    read = []
    for t in range(max(0, len(row) - 5), len(row)):
        q, out = model.query(normed[t]), []
        for m in (slice(0, 4), slice(4, 8)):
            out.append((k[: t + 1, m] @ q[m] / 2).softmax(0) @ v[: t + 1, m])
        y = x[t] + model.out_proj(torch.cat(out))
        read.append(y + model.mlp(model.norm_mlp(y)))
    y = torch.stack(read)[None]
    for block in model.blocks:
        y = block(y)
    return F.linear(model.norm(y), model.embedding.weight)[0]


@pytest.mark.parametrize("length", [1, 4, 5, 17, 24])
def test_is_its_words(length: int):
    model, rows = build(), tokens(3, length)
    assert_close(model(rows), torch.stack([definition(model, row) for row in rows]))


@pytest.mark.parametrize("mixer", [None, HyenaOperator, partial(LinearAttention, num_heads=2)], ids=str)
@pytest.mark.parametrize("sizes", [[1] * 20, [20], [7, 1, 1, 8, 3]], ids=str)
def test_decoding_is_forward_on_all_so_far(sizes: list[int], mixer):
    model, rows = build(mixer), tokens(2, 20)
    state, at = model.init_state(2), 0
    for n in sizes:
        logits, state = model.prefill(rows[:, at : at + n], state, last=True)
        at += n
        assert_close(logits[:, 0], model(rows[:, :at])[:, -1])
    state = model.init_state(2, 20)
    model.prefill(rows[:, :16], state, last=True)
    logits, _ = model.prefill(rows[:, 16:], state)
    assert_close(logits, model(rows)[:, -4:])


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_nothing(side: str):
    model, rows = build(), tokens(3, 16)
    sizes, at = torch.tensor([[16], [9], [2]]), torch.arange(16)
    keep = at < sizes if side == "right" else at >= 16 - sizes
    logits = model(rows, keep)
    for i, size in enumerate([16, 9, 2]):
        n = min(size, 5)
        assert_close(logits[i, -n:], model(rows[i : i + 1, keep[i]])[0])
    state = model.init_state(3)
    for part, kept in zip(rows.split(6, dim=1), keep.split(6, dim=1), strict=True):
        got, state = model.prefill(part, state, kept, last=True)
    assert_close(got[:, 0], logits[:, -1])


def test_no_logit_sees_a_later_token():
    model, rows = build(), tokens(1, 20)
    other = rows.clone()
    other[:, -1] = (other[:, -1] + 1) % 13
    assert_close(model(other)[:, :-1], model(rows)[:, :-1])
    assert (model(other)[:, -1] - model(rows)[:, -1]).abs().max() > 1e-6


def test_text_and_training():
    model, rows = build(), tokens(2, 12)
    made = model.generate([rows[0], rows[1, :7]], 6, temperature=0)
    for row, start in zip(made, (12, 7), strict=True):
        for t in range(start, start + 6):
            assert row[t] == model(row[None, :t])[0, -1].argmax()
    loss = model.loss(rows[:, :-1], rows[:, 1:])
    assert_close(loss, F.cross_entropy(model(rows[:, :-1]).flatten(0, 1), rows[:, -5:].flatten()))
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    later = PerceiverAR(CONFIG, device="meta").to_empty(device="cpu")
    with torch.no_grad():
        for p in later.parameters():
            p.fill_(torch.nan)
    later.reset_parameters()
    assert later(rows).isfinite().all()


def test_wrong_arguments():
    with pytest.raises(ValueError, match="num_latents=30 are more than the context's l_max=24"):
        PerceiverARConfig(vocab_size=5, l_max=24, num_latents=30)
    with pytest.raises(ValueError, match="d_model=10 is not a multiple of num_heads=4"):
        PerceiverARConfig(vocab_size=5, d_model=10, num_heads=4)
    with pytest.raises(ValueError, match="causal=False sees later latents"):
        PerceiverAR(CONFIG, partial(HyenaOperator, causal=False))
    model = build()
    with pytest.raises(ValueError, match=r"l_max=24, got \(1, 25\)"):
        model(tokens(1, 25))
    state = model.init_state(1, 8)
    with pytest.raises(ValueError, match="6 tokens are more than the 5 latents"):
        model.prefill(tokens(1, 6), state)
    model.prefill(tokens(1, 8), state, last=True)
    with pytest.raises(ValueError, match="8 positions and 1 more do not fit"):
        model.step(tokens(1, 1)[0], state)
    with pytest.raises(ValueError, match="padded on the left"):
        model.loss(tokens(1, 4), tokens(1, 4), torch.tensor([[True, True, False, True]]))
