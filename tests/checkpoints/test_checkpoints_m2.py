"""Released Monarch Mixers: the sequence mixer with all gradients, and a whole M2-BERT."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from helpers.definitions import assert_close
from helpers.released import Golden, golden
from hyena.checkpoints import load_m2_bert, load_m2_mixer
from hyena.checkpoints.m2 import mixer_names
from hyena.models import BlockDiagonalLinear, M2Bert, M2BertConfig

MIXERS = ["m2_mixer_bi", "m2_mixer_bi_residual", "m2_mixer_causal", "m2_mixer_causal_residual"]


def weights(found: Golden) -> dict[str, Tensor]:
    return {name.removeprefix("param."): t for name, t in found.tensors.items() if name.startswith("param.")}


@pytest.mark.parametrize("name", MIXERS)
def test_mixer_is_the_authors(name: str):
    found = golden(name)
    want = found.tensors
    mixer = load_m2_mixer(weights(found), found.config)
    u = want["input"].clone().requires_grad_()
    y = mixer(u)
    assert_close(y, want["output"])
    (y * want["probe"]).sum().backward()
    assert_close(u.grad, found.grads["input"], "input")
    ours, compared = dict(mixer.named_parameters()), set()
    for theirs, (mine, _) in mixer_names(found.config).items():
        if mine in ours and theirs in found.grads:
            assert_close(ours[mine].grad, found.grads[theirs].reshape(ours[mine].shape), theirs)
            compared.add(mine)
    assert set(ours) == compared
    taps = mixer.conv.filter(u.size(1))[0]
    assert_close(taps[-u.size(1) :], want["taps.forward"])
    if "taps.reverse" in want:
        assert_close(taps[: u.size(1) - 1].flip(0), want["taps.reverse"][: u.size(1) - 1])


def test_m2_bert_is_the_authors(tmp_path: Path):
    found = golden("m2_bert_tiny")
    model = load_m2_bert(weights(found), found.config).eval()
    tokens = found.tensors["input_ids"]
    assert_close(model(tokens), found.tensors["logits"])
    # Its mask does nothing; ours keeps padding out, and a padded row gives what it gives alone.
    assert_close(model(tokens), found.tensors["logits_padded"])
    keep = found.tensors["attention_mask_padded"].bool()
    row = int((keep.sum(1) < keep.size(1)).nonzero()[0])
    size = int(keep[row].sum())
    alone = model(tokens[row : row + 1, :size])[0]
    assert keep[row, :size].all()
    assert_close(model(tokens, keep)[row, :size], alone)
    # From files.
    save_file({name: t.contiguous() for name, t in weights(found).items()}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(found.config))
    assert torch.equal(load_m2_bert(tmp_path).eval()(tokens), model(tokens))


def test_what_does_not_fit_raises():
    found = golden("m2_bert_tiny")
    good = weights(found)
    with pytest.raises(ValueError, match=r"missing keys: bert\.embeddings\.LayerNorm\.bias"):
        load_m2_bert({n: t for n, t in good.items() if n != "bert.embeddings.LayerNorm.bias"}, found.config)
    with pytest.raises(ValueError, match="keys that fit nowhere: more"):
        load_m2_bert({**good, "more": torch.zeros(1)}, found.config)
    with pytest.raises(ValueError, match="use_glu_mlp=False"):
        load_m2_bert(good, {**found.config, "use_glu_mlp": False})
    with pytest.raises(ValueError, match=r"hidden_size.*32"):
        load_m2_bert(good, {**found.config, "hidden_size": -32})
    bad = {**good, "cls.predictions.decoder.weight": torch.zeros(40, 16, dtype=torch.float64)}
    with pytest.raises(ValueError, match="differs from the embedding"):
        load_m2_bert(bad, found.config)
    name = "bert.encoder.layer.1.attention.filter_fn.implicit_filter_rev.5.freq"
    with pytest.raises(ValueError, match="one frequency for all"):
        load_m2_bert({**good, name: good[name] + 1}, found.config)
    with pytest.raises(ValueError, match="unknown keys in the config of MonarchMixerSequenceMixing: more"):
        load_m2_mixer({}, {**golden("m2_mixer_bi").config, "more": 1})


def test_trains_and_starts_again():
    config = M2BertConfig(vocab_size=11, l_max=16, d_model=8, num_layers=2, d_inner=16, width=8)
    model, tokens = M2Bert(config), torch.randint(11, (3, 12))
    loss = nn.functional.cross_entropy(model(tokens).flatten(0, 1), tokens.flatten())
    assert abs(loss.item() - torch.tensor(11.0).log().item()) < 0.3
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert torch.equal(copy.deepcopy(model)(tokens), model(tokens))
    later = M2Bert(config, device="meta").to_empty(device="cpu")
    with torch.no_grad():
        for t in (*later.parameters(), *later.buffers()):
            t.fill_(torch.nan)
    later.reset_parameters()
    assert later(tokens).isfinite().all()
    with pytest.raises(ValueError, match=r"l_max=16, got \(1, 17\)"):
        model(torch.zeros(1, 17, dtype=torch.long))


def test_block_diagonal_layers():
    layer = BlockDiagonalLinear(6, 4, 2, dtype=torch.float64)
    x = torch.randn(3, 5, 6, dtype=torch.float64)
    assert_close(layer(x), x @ torch.block_diag(*layer.weight).T + layer.bias)
    with pytest.raises(ValueError, match="in_features=6 and out_features=4 must be multiples of num_blocks=4"):
        BlockDiagonalLinear(6, 4, 4)
