"""Saving HyenaDNA: what is read back has equal outputs, in the released formats, and what they cannot say raises."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from helpers.dna import build
from helpers.released import deviation, golden
from hyena import HyenaOperator
from hyena.checkpoints import load_hyenadna, save_hyenadna
from hyena.filters import S4D, LearnedEncoding
from hyena.models import HyenaDNA, HyenaDNAConfig

GOLDEN = golden("hyenadna_tiny")
TOKENS, WANT = GOLDEN.tensors["input_ids"], GOLDEN.tensors["output"]


def tokens(length: int = 64) -> torch.Tensor:
    return torch.randint(0, 12, (2, length))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "changes",
    [
        {"head": None},
        {"head": "lm"},
        {"head": "lm", "tie_embeddings": False, "residual_in_fp32": False, "dropout": 0.1},
        {"head": "classes", "num_classes": 3},
        {"head": "classes", "num_classes": 5, "pooling": "last", "head_bias": False},
        {"head": "lm", "d_inner": 24, "emb_dim": 3, "l_max": 77},
        {"head": None, "order": 3},
        {"head": "classes", "order": 3, "dropout": 0.2, "norm_eps": 1e-6},
    ],
    ids=["hidden", "lm", "untied", "classes", "hf-classes", "sizes", "original", "original-classes"],
)
def test_round_trip(changes: dict[str, Any], dtype: torch.dtype, tmp_path: Path) -> None:
    model = build("dna", dtype, **changes)
    save_hyenadna(model, tmp_path / "new")
    assert sorted(file.name for file in (tmp_path / "new").iterdir()) == ["config.json", "model.safetensors"]
    again = load_hyenadna(tmp_path / "new").eval()
    x = tokens()
    assert torch.equal(again(x), model(x))
    assert again(x).dtype == dtype
    assert again.config.head == changes["head"]
    for name, value in changes.items():
        assert getattr(again.config, name) == value
    # Further training starts from the same weights.
    mine, theirs = dict(model.named_parameters()), dict(again.named_parameters())
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)


def test_what_was_loaded(tmp_path: Path) -> None:
    for head in (None, "lm"):
        model = load_hyenadna(GOLDEN.state, GOLDEN.config, head=head).eval()
        save_hyenadna(model, tmp_path)
        again = load_hyenadna(tmp_path).eval()
        assert torch.equal(again(TOKENS), model(TOKENS))
        assert deviation(again.hidden_states(TOKENS), WANT) < 1e-5


def test_the_released_names_are_there(tmp_path: Path) -> None:
    """Every tensor of the released model, with its values."""
    save_hyenadna(load_hyenadna(GOLDEN.state, GOLDEN.config), tmp_path)
    saved = load_file(tmp_path / "model.safetensors")
    for name, t in GOLDEN.state.items():
        torch.testing.assert_close(saved.pop("hyena." + name), t, rtol=0, atol=1e-6)
    assert saved == {}
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["architectures"] == ["HyenaDNAModel"]
    assert config["max_seq_len"] == GOLDEN.config["layer"]["l_max"]


@pytest.mark.parametrize("trained", [True, False])
def test_a_learned_encoding(trained: bool, tmp_path: Path) -> None:
    model = load_hyenadna(GOLDEN.state, GOLDEN.config, learned_encoding=True).eval()
    if trained:
        with torch.no_grad():
            for block in model.blocks:
                block.mixer.conv.filter.encoding.table.add_(0.1)
    save_hyenadna(model, tmp_path)
    again = load_hyenadna(tmp_path).eval()
    assert deviation(again(TOKENS), model(TOKENS)) < (1e-7 if trained else 1e-5)
    assert isinstance(again.blocks[0].mixer.conv.filter.encoding, LearnedEncoding) == trained


def test_half_precision(tmp_path: Path) -> None:
    state = {name: t.to(torch.bfloat16) for name, t in GOLDEN.state.items()}
    model = load_hyenadna(state, GOLDEN.config).eval()
    save_hyenadna(model, tmp_path)
    again = load_hyenadna(tmp_path).eval()
    assert torch.equal(again(TOKENS), model(TOKENS))
    with torch.no_grad():
        model.blocks[1].mixer.conv.filter.ffn.out.weight.add_(1e-5)
    with pytest.raises(ValueError, match=r"blocks\.1\.mixer is torch\.bfloat16, .* save model\.float\(\)"):
        save_hyenadna(model, tmp_path)
    assert torch.equal(load_hyenadna(tmp_path).eval()(TOKENS), again(TOKENS))


def test_what_the_formats_cannot_say(tmp_path: Path) -> None:
    config = HyenaDNAConfig(l_max=16, d_model=8, num_layers=1, filter_width=4)
    for mixer, error in (
        (HyenaOperator(8, 16, filter=S4D), "needs a HyenaFilter, not a S4D"),
        (HyenaOperator(8, 16, num_heads=2), "needs a causal operator with one head"),
        (HyenaOperator(8, 16, activation="gelu"), "needs no activation"),
        (HyenaOperator(8, 16, bias=False), "and biases"),
        (torch.nn.Identity(), "needs a HyenaOperator, not a Identity"),
        (HyenaOperator(8, 32), "filters of l_max=16, not 32"),
    ):
        with pytest.raises(ValueError, match=error):
            save_hyenadna(HyenaDNA(config, [mixer]), tmp_path)
    extended = HyenaDNA(config)
    extended.extend(32)
    with pytest.raises(ValueError, match="time reaches 1 at l_max=32, not at 16"):
        save_hyenadna(extended, tmp_path)
    extended = HyenaDNA(config)
    extended.extend(32, "stretch")
    save_hyenadna(extended, tmp_path)
    extended.eval()
    x = tokens(32)
    assert torch.equal(load_hyenadna(tmp_path).eval()(x), extended(x))
    with pytest.raises(ValueError, match="hyena_order=3 cannot be loaded"):
        save_hyenadna(HyenaDNA(HyenaDNAConfig(l_max=16, d_model=8, num_layers=1, order=3, head="lm")), tmp_path)


def test_without_safetensors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    with pytest.raises(ModuleNotFoundError, match="pip install safetensors"):
        save_hyenadna(build("dna", torch.float32), tmp_path)


def test_num_labels(tmp_path: Path) -> None:
    """A head for a task of one's own, on any checkpoint, and back again."""
    save_hyenadna(build("dna", torch.float32, head="lm"), tmp_path)
    with pytest.warns(UserWarning, match="starts at random"):
        model = load_hyenadna(tmp_path, num_labels=4).eval()
    assert model(tokens()).shape == (2, 4)
    assert (model.config.head, model.config.num_classes, model.config.pooling) == ("classes", 4, "last")
    save_hyenadna(model, tmp_path / "tuned")
    again = load_hyenadna(tmp_path / "tuned").eval()
    x = tokens()
    assert torch.equal(again(x), model(x))
    with pytest.raises(ValueError, match=r"score\.weight is \(4, 16\), the config makes it \(3, 16\)"):
        load_hyenadna(tmp_path / "tuned", num_labels=3)
    with pytest.raises(ValueError, match="num_labels=3 is of head='classes', not of head='lm'"):
        load_hyenadna(tmp_path, head="lm", num_labels=3)
    with pytest.raises(ValueError, match="num_labels=0"):
        load_hyenadna(tmp_path, num_labels=0)


def test_score_weight_without_a_name_in_the_config(tmp_path: Path) -> None:
    save_hyenadna(build("dna", torch.float32, head="classes", pooling="last", head_bias=False), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["architectures"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    model = load_hyenadna(tmp_path)
    assert model.config.head == "classes"
    tensors = load_file(tmp_path / "model.safetensors")
    assert torch.equal(model.head.weight, tensors["score.weight"])
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"fit nowhere: score\.weight"):
        load_hyenadna(tmp_path, head=None)
