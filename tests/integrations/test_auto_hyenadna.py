"""HyenaDNA's published ``-hf`` folders through transformers' Auto classes, without remote code."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from helpers.auto_models import GOLDEN, published
from helpers.released import deviation
from hyena.checkpoints import load_hyenadna, save_hyenadna
from hyena.filters import LearnedEncoding
from hyena.genomics import DNATokenizer
from hyena.integrations import auto

TOKENS, WANT = GOLDEN.tensors["input_ids"], GOLDEN.tensors["output"]


@torch.no_grad()
def test_as_published(tmp_path: Path):
    """Hidden states are the released code's, and everything is what our own loader gives, to the bit."""
    folder = published(tmp_path)
    ours = load_hyenadna(folder).eval()
    base, found = AutoModel.from_pretrained(folder, trust_remote_code=False, output_loading_info=True)
    assert type(base) is auto.HyenaDNAModel
    assert not any(found.values())
    assert not base.training
    assert deviation(base(TOKENS).last_hidden_state, WANT) < 1e-5
    assert torch.equal(base(TOKENS).last_hidden_state, ours.hidden_states(TOKENS))
    model = AutoModelForCausalLM.from_pretrained(str(folder))
    assert type(model) is auto.HyenaDNAForCausalLM
    assert torch.equal(model(TOKENS).logits, ours(TOKENS))
    mask = torch.ones_like(TOKENS)
    mask[0, :7] = 0
    assert torch.equal(model(TOKENS, attention_mask=mask).logits, ours(TOKENS, mask))
    for dtype in ("auto", torch.float32, "float32"):
        again = auto.HyenaDNAForCausalLM.from_pretrained(folder, dtype=dtype)
        assert torch.equal(again(TOKENS).logits, ours(TOKENS))
    assert model.config.name_or_path == model.name_or_path == str(folder)
    assert (model.config.hidden_size, model.config.num_hidden_layers) == (32, 2)
    want = torch.stack(ours.generate(TOKENS[:, :30], 5, temperature=0))
    got = model.generate(TOKENS[:, :30], attention_mask=torch.ones(2, 30).long(), max_new_tokens=5, eos_token_id=None)
    assert torch.equal(got, want)


@pytest.mark.parametrize("shard", ["5GB", "20KB"])
@pytest.mark.parametrize("kind", [AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification])
@torch.no_grad()
def test_saved(kind: Any, shard: str, tmp_path: Path):
    """What is saved loads in both ways, and holds what the published file holds."""
    model = kind.from_pretrained(published(tmp_path / "published"))
    if kind is AutoModelForSequenceClassification:
        assert model.config.num_labels == 2
    model.save_pretrained(tmp_path / "new", max_shard_size=shard)
    again = kind.from_pretrained(tmp_path / "new")
    want = model(TOKENS)[0]
    assert torch.equal(again(TOKENS)[0], want)
    assert torch.equal(load_hyenadna(tmp_path / "new").eval()(TOKENS), want)
    config = json.loads((tmp_path / "new" / "config.json").read_text())
    assert config["architectures"] == [type(model).__name__]
    if shard == "5GB":
        saved = load_file(tmp_path / "new" / "model.safetensors")
        for name, t in load_file(tmp_path / "published" / "model.safetensors").items():
            if name != "lm_head.weight" or kind is AutoModelForCausalLM:
                torch.testing.assert_close(saved[name], t, rtol=0, atol=1e-6)
    for missing in (tmp_path / "new").glob("model-00001-*"):
        missing.unlink()
        for load in (kind.from_pretrained, load_hyenadna):
            with pytest.raises(FileNotFoundError, match=r"model-00001-of-.*, which is not there"):
                load(tmp_path / "new")


def test_saved_by_the_library(tmp_path: Path):
    save_hyenadna(load_hyenadna(published(tmp_path / "published"), head="lm"), tmp_path / "new")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "new")
    assert torch.equal(model(TOKENS).logits, load_hyenadna(tmp_path / "published").eval()(TOKENS))


def test_a_classifier(tmp_path: Path):
    folder = published(
        tmp_path, architectures=["HyenaDNAForSequenceClassification"], id2label={"0": "a", "1": "b", "2": "c"}
    )
    tensors = load_file(folder / "model.safetensors")
    del tensors["lm_head.weight"]
    save_file({**tensors, "score.weight": torch.randn(3, 32)}, folder / "model.safetensors", {"format": "pt"})
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    assert model.config.id2label == {0: "a", 1: "b", 2: "c"}
    mask = torch.ones_like(TOKENS)
    mask[1, :9] = 0
    want = load_hyenadna(folder).eval()(TOKENS, mask)
    assert torch.equal(model(TOKENS, attention_mask=mask).logits, want)
    assert torch.equal(
        AutoModel.from_pretrained(folder)(TOKENS).last_hidden_state, model.model(TOKENS).last_hidden_state
    )
    with pytest.raises((ValueError, RuntimeError), match=r"mismatch|size"):
        AutoModelForSequenceClassification.from_pretrained(folder, num_labels=7)
    other = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=7, ignore_mismatched_sizes=True)
    assert other.score.weight.shape == (7, 32)


def test_token_classes(tmp_path: Path):
    kind = transformers.AutoModelForTokenClassification
    model, found = kind.from_pretrained(published(tmp_path / "published"), num_labels=3, output_loading_info=True)
    assert found["missing_keys"] == {"score.weight", "score.bias"}
    model.save_pretrained(tmp_path / "new")
    again = kind.from_pretrained(tmp_path / "new")
    assert again(TOKENS).logits.shape == (*TOKENS.shape, 3)
    assert torch.equal(again(TOKENS).logits, model(TOKENS).logits)
    with pytest.raises(ValueError, match="HyenaDNAForTokenClassification"):
        load_hyenadna(tmp_path / "new")


def test_positions_that_were_trained(tmp_path: Path):
    """The published code makes a table of positions trainable, and it is kept only where it was trained."""
    folder = published(tmp_path / "published")
    tensors = load_file(folder / "model.safetensors")
    name = "hyena.backbone.layers.1.mixer.filter_fn.pos_emb.z"
    tensors[name] = tensors[name] + 0.1
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    model = AutoModelForCausalLM.from_pretrained(folder)
    kinds = [isinstance(layer.mixer.conv.filter.encoding, LearnedEncoding) for layer in model.model.blocks]
    assert kinds == [False, True]
    assert torch.equal(model(TOKENS).logits, load_hyenadna(folder).eval()(TOKENS))


def test_what_is_trained(tmp_path: Path):
    folder = published(tmp_path, train_freq=False)
    model, ours = AutoModelForCausalLM.from_pretrained(folder), load_hyenadna(folder)
    frozen = {key.removeprefix("model.") for key, p in model.named_parameters() if not p.requires_grad}
    assert frozen == {key for key, p in ours.named_parameters() if not p.requires_grad}
    assert any(key.endswith("freq") for key in frozen)


def test_a_new_model(tmp_path: Path):
    """All settings of a config act in a model that no checkpoint has."""
    c = auto.HyenaDNAConfig(d_model=16, n_layer=2, max_seq_len=50, emb_dim=5, num_inner_mlps=1, filter_order=8,
                            activation_freq=7, train_freq=False, d_inner=24)  # fmt: skip
    model = AutoModelForCausalLM.from_config(c).eval()
    ffn = model.model.blocks[0].mixer.conv.filter.ffn
    assert len(ffn.hidden) == 2
    assert ffn.freq.eq(7).all()
    assert not ffn.freq.requires_grad
    assert model.model.blocks[0].mlp.fc1.out_features == 24
    ids = torch.randint(7, 12, (2, 50))
    assert torch.equal(model.to_hyena()(ids), model(ids).logits)
    model.save_pretrained(tmp_path)
    assert torch.equal(AutoModelForCausalLM.from_pretrained(tmp_path)(ids).logits, model(ids).logits)


def test_from_the_cache_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """By the name of a repository, whose files were downloaded before."""
    place = tmp_path / "models--LongSafari--hyenadna-tiny"
    folder = published(place / "snapshots" / "abc")
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text("abc")
    # transformers looks for an adapter on the Hub all the same.
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    where = {"cache_dir": tmp_path, "local_files_only": True}
    model = AutoModelForCausalLM.from_pretrained("LongSafari/hyenadna-tiny", **where)
    assert torch.equal(model(TOKENS).logits, load_hyenadna(folder).eval()(TOKENS))
    assert model.config.name_or_path == "LongSafari/hyenadna-tiny"
    model = auto.HyenaDNAForCausalLM.from_pretrained("LongSafari/hyenadna-tiny", **where)
    assert torch.equal(model(TOKENS).logits, load_hyenadna(folder).eval()(TOKENS))


def test_published_names_in_a_state_dict(tmp_path: Path):
    """As Trainer loads a checkpoint."""
    model = AutoModelForCausalLM.from_pretrained(published(tmp_path))
    other = AutoModelForCausalLM.from_config(model.config)
    assert str(other.load_state_dict(load_file(tmp_path / "model.safetensors"))) == "<All keys matched successfully>"
    assert torch.equal(other.eval()(TOKENS).logits, model(TOKENS).logits)


def test_tokenizer(tmp_path: Path):
    """The ids of the published tokenizer, and of ours."""
    folder = published(tmp_path / "published")
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    assert type(tokenizer) is auto.HyenaDNATokenizer
    assert isinstance(tokenizer, transformers.PreTrainedTokenizerFast)
    assert (tokenizer.padding_side, tokenizer.model_max_length, len(tokenizer)) == ("left", 66, 12)
    # What tokenization_hyena.py gives: a token a letter, [UNK] for others, [SEP] behind.
    names = {"[CLS]": 0, "[SEP]": 1, "[BOS]": 2, "[MASK]": 3, "[PAD]": 4, "[RESERVED]": 5, "[UNK]": 6}
    assert tokenizer.get_vocab() == names | {"A": 7, "C": 8, "G": 9, "T": 10, "N": 11}
    text = "ACGTNNa c\nX-ÄTTG"
    unknown = DNATokenizer(unknown="[UNK]")
    for each in (tokenizer, saved(tokenizer, tmp_path / "new")):
        assert each(text).input_ids == [*unknown.encode(text).tolist(), 1]
        assert each(text, add_special_tokens=False).input_ids == unknown.encode(text).tolist()
        assert each("AC", "GT").input_ids == [7, 8, 1, 9, 10, 1]
        assert each("A[MASK]C[PAD]").input_ids == [7, 3, 8, 4, 1]
        assert each.decode([7, 8, 9, 10, 11, 1]) == "ACGTN[SEP]"
        assert each.decode([4, 7, 8, 11, 1], skip_special_tokens=True) == "ACN"
        rows = each(["ACGT", "A"], padding=True, return_tensors="pt")
        assert rows.input_ids.tolist() == [[7, 8, 9, 10, 1], [4, 4, 4, 7, 1]]
        assert rows.attention_mask.tolist() == [[1, 1, 1, 1, 1], [0, 0, 0, 1, 1]]
        assert each(["ACGTACGT"], truncation=True, max_length=4).input_ids == [[7, 8, 9, 1]]
        special = [each.bos_token_id, each.eos_token_id, each.sep_token_id, each.cls_token_id, each.pad_token_id]
        assert [*special, each.mask_token_id, each.unk_token_id] == [2, 1, 1, 0, 4, 3, 6]


def saved(tokenizer: Any, folder: Path) -> Any:
    tokenizer.save_pretrained(folder)
    published(folder)  # its config says which tokenizer it is; the saved files stay
    tokenizer.save_pretrained(folder)
    return AutoTokenizer.from_pretrained(folder)


def test_padded_text_and_its_classes(tmp_path: Path):
    """From letters to classes: a row gives what it gives alone."""
    folder = published(tmp_path)
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForSequenceClassification.from_pretrained(folder)
    together = model(**tokenizer(["ACGTACGT", "GATTA", "C"], padding=True, return_tensors="pt")).logits
    for i, text in enumerate(["ACGTACGT", "GATTA", "C"]):
        torch.testing.assert_close(model(**tokenizer(text, return_tensors="pt")).logits[0], together[i])


def test_what_cannot_be_loaded(tmp_path: Path):
    folder = published(tmp_path / "published")
    for name, value in (("hyena_order", 3), ("n_layer", 0), ("d_model", "x"), ("emb_dim", 4)):
        config = json.loads((folder / "config.json").read_text()) | {name: value}
        (tmp_path / "bad").mkdir(exist_ok=True)
        (tmp_path / "bad" / "config.json").write_text(json.dumps(config))
        with pytest.raises(ValueError, match=name):
            AutoModel.from_pretrained(tmp_path / "bad")
    (tmp_path / "bad" / "config.json").write_text((folder / "config.json").read_text())
    with pytest.raises(FileNotFoundError, match="none of model"):
        AutoModel.from_pretrained(tmp_path / "bad")
    shutil.copy(folder / "model.safetensors", tmp_path / "bad")
    (tmp_path / "bad" / "config.json").write_text(
        json.dumps({**json.loads((folder / "config.json").read_text()), "d_model": 16})
    )
    with pytest.raises(ValueError, match="the config makes it"):
        AutoModel.from_pretrained(tmp_path / "bad")
    with pytest.raises(ValueError, match="Unrecognized configuration class"):
        transformers.AutoModelForMaskedLM.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    model.model.blocks[0].mixer.in_proj = torch.nn.Linear(32, 96, bias=False)
    with pytest.raises(ValueError, match="and biases"):
        model.save_pretrained(tmp_path / "bad")
