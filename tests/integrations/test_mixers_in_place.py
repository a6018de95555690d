"""Any mixer in attention's place: in nn.MultiheadAttention's, in transformers' models, in nanoGPT's."""

from __future__ import annotations

import inspect
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import hyena.mixers
from helpers.attention_models import EXACT, D, L, M, TinyGPT, bert, gpt2, padding, tokens
from helpers.transformers_models import KINDS
from hyena.filters import ExplicitFilter
from hyena.integrations import HyenaAttention, load_pretrained, replace_attention
from hyena.mixers import Attention, HyenaOperator, Mixer


class RunningMean(Mixer):
    """A mixer with few arguments and no state."""

    def __init__(self, d_model: int, l_max: int, *, scale: float = 1.0) -> None:
        super().__init__()
        self.d_model, self.l_max, self.causal = d_model, l_max, True
        self.weight = nn.Parameter(torch.full((d_model,), scale))

    def reset_parameters(self) -> None:
        nn.init.ones_(self.weight)

    def forward(self, u: Tensor, mask: Tensor | None = None, cu_seqlens=None, max_seqlen=None, state=None) -> Tensor:
        keep = torch.ones(u.shape[:2], dtype=torch.bool) if mask is None else mask
        total = torch.where(keep[..., None], u, 0.0).cumsum(1)
        return self.weight * total / keep.cumsum(1).clamp_min(1)[..., None]


# Those of patches, which are two-sided and ask for a grid, are in test_vision.py.
EXPORTED = [
    kind for name in hyena.mixers.__all__ if not getattr(kind := getattr(hyena.mixers, name), "takes_grid", False)
]
MIXERS = {
    **{kind.__name__: kind for kind in EXPORTED if issubclass(kind, Mixer) and not inspect.isabstract(kind)},
    "explicit": partial(HyenaOperator, filter=partial(ExplicitFilter, taps=5)),
    "own": partial(RunningMean, scale=0.5),
}


@pytest.mark.parametrize("name", MIXERS)
def test_in_the_place_of_multi_head_attention(name: str):
    attn = HyenaAttention(D, M, l_max=L, batch_first=True, causal=True, mixer=MIXERS[name]).double().eval()
    x, mask = torch.randn(3, L, D).double(), padding("left")[0].bool()
    want = attn.operator(x, mask)
    assert torch.equal(attn(x, x, x, key_padding_mask=~mask)[0], want)
    layer = nn.TransformerEncoderLayer(D, M, 32, 0.0, batch_first=True).double().eval()
    encoder = nn.TransformerEncoder(layer, 2)
    report = replace_attention(encoder, l_max=L, causal=True, mixer=MIXERS[name])
    kind = type(attn.operator)
    assert [type(layer.self_attn.operator) for layer in encoder.layers] == [kind, kind]
    assert [entry.l_max for entry in report.replaced] == [L, L]
    causal = nn.Transformer.generate_square_subsequent_mask(L).double()
    with torch.no_grad():
        got = encoder(x, mask=causal, src_key_padding_mask=torch.zeros(3, L).masked_fill(~mask, -torch.inf).double())
        for i in range(3):
            alone = encoder(x[i : i + 1, mask[i]])
            torch.testing.assert_close(got[i : i + 1, mask[i]], alone, **EXACT)


@pytest.mark.parametrize("name", MIXERS)
def test_in_a_language_model(name: str):
    model = gpt2()
    replace_attention(model, mixer=MIXERS[name])
    mask, positions = padding("left")
    out = model(tokens(), attention_mask=mask, position_ids=positions).logits
    for i in range(3):
        rows = mask[i].bool()
        torch.testing.assert_close(out[i, rows], model(tokens()[i : i + 1, rows]).logits[0], **EXACT)
    settings = {"attention_mask": mask, "max_new_tokens": 6, "do_sample": False, "pad_token_id": 2}
    want = model.generate(tokens(), use_cache=False, **settings)
    if name == "own":
        with pytest.raises(ValueError, match="it has no init_state"):
            model.generate(tokens(), **settings)
        return
    for beams in (1, 3):
        want = model.generate(tokens(), use_cache=False, num_beams=beams, **settings)
        assert torch.equal(model.generate(tokens(), num_beams=beams, **settings), want)


@pytest.mark.parametrize("kind", [kind for kind in MIXERS.values() if inspect.isclass(kind)])
def test_in_a_two_sided_model(kind: type[Mixer]):
    model = bert()
    if kind is hyena.mixers.BlockRecurrent:
        with pytest.raises(ValueError, match="causal=False is not possible"):
            replace_attention(model, mixer=kind)
        return
    replace_attention(model, mixer=kind)
    for side in ("left", "right"):
        mask, positions = padding(side)
        out = model(tokens(), attention_mask=mask, position_ids=positions).logits
        for i in range(3):
            rows = mask[i].bool()
            torch.testing.assert_close(out[i, rows], model(tokens()[i : i + 1, rows]).logits[0], **EXACT)
    other = tokens()
    other[0, -1] = (other[0, -1] + 1 - 3) % 37 + 3
    assert (model(other).logits - model(tokens()).logits)[0, 0].abs().max() > 1e-9


def test_attention_has_the_heads_of_attention():
    model = gpt2(attn_pdrop=0.25)
    replace_attention(model, mixer=Attention)
    assert model.transformer.h[0].attn.operator.num_heads == M
    assert model.transformer.h[0].attn.operator.dropout == 0.25
    assert HyenaAttention(D, M, l_max=L, mixer=Attention, dropout=0.5).operator.num_heads == M
    sequence = TinyGPT(block_size=20)
    replace_attention(sequence, mixer=partial(Attention, num_heads=2))
    assert sequence.blocks[0]["attn"].operator.num_heads == 2
    sequence(torch.randn(2, L, D))


def test_what_a_mixer_cannot_do_raises():
    with pytest.raises(ValueError, match="causal=False, and a RunningMean has causal=True"):
        HyenaAttention(D, M, l_max=L, mixer=RunningMean)
    with pytest.raises(ValueError, match="takes no dropout"):
        HyenaAttention(D, M, l_max=L, mixer=RunningMean, causal=True, dropout=0.5)
    with pytest.raises(ValueError, match="causal=False"):
        replace_attention(KINDS["bert"].make(), mixer=RunningMean)
    with pytest.raises(TypeError, match="filter"):
        replace_attention(gpt2(), mixer=Attention, filter=None)
    attn = HyenaAttention(D, M, l_max=L, mixer=RunningMean, causal=True)
    assert attn.dropout == 0
    with pytest.raises(ValueError, match="no dropout"):
        attn.dropout = 0.5


@pytest.mark.parametrize("name", MIXERS)
def test_saves_and_loads(name: str, tmp_path: Path):
    model = gpt2()
    replace_attention(model, mixer=MIXERS[name])
    model.save_pretrained(tmp_path)
    if name == "own":
        with pytest.raises(ValueError, match=r"mixer=.*RunningMean.*pass it in options="):
            load_pretrained(tmp_path)
        loaded = load_pretrained(tmp_path, options={"mixer": MIXERS[name]})
    else:
        loaded = load_pretrained(tmp_path)
    assert torch.equal(loaded(tokens()).logits, model(tokens()).logits)


@pytest.mark.parametrize("causal", [False, True])
def test_empty_batches(causal: bool):
    shape = (0, L)
    x, ignore = torch.randn(*shape, D), torch.zeros(shape, dtype=torch.bool)
    for multi_head in (False, True):
        attn = HyenaAttention(D, M, l_max=L, batch_first=True, causal=causal, multi_head=multi_head, dropout=0.5)
        y, weights = attn(x, x, x, key_padding_mask=ignore, need_weights=True, average_attn_weights=False)
        assert y.shape == (*shape, D)
        assert weights.shape == (shape[0], M, shape[1], shape[1])
        assert attn(x, x, x, key_padding_mask=torch.zeros(shape))[0].shape == (*shape, D)
        y.sum().backward()
        with pytest.raises(ValueError, match="at least one position"):
            attn(x[:, :0], x[:, :0], x[:, :0])
