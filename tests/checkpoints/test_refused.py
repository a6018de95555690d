"""What the loaders refuse, before anything is built: weights, configs and files that would load without a word."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from helpers.released import HF_CONFIG, golden, random_state
from hyena.checkpoints import load_hyenadna, load_safari_operator

CONFIG: dict[str, Any] = {"d_model": 6, "l_max": 40, "emb_dim": 5, "filter_order": 8, "w": 10}
STATE = random_state(CONFIG)
DNA = golden("hyenadna_tiny")
TABLE = "backbone.embeddings.word_embeddings.weight"


def operator(state: dict[str, Tensor], config: dict[str, Any] = CONFIG) -> nn.Module:
    return load_safari_operator(state, config)


def model(state: dict[str, Tensor], config: dict[str, Any] = DNA.config) -> nn.Module:
    return load_hyenadna(state, config)


LOADERS: list[tuple[Callable[..., nn.Module], dict[str, Tensor]]] = [(operator, STATE), (model, DNA.state)]
NAMES = [(load, state, name) for load, state in LOADERS for name in state]
IDS = [name for _, _, name in NAMES]


# --- weights ---


@pytest.mark.parametrize(("load", "state", "name"), NAMES, ids=IDS)
def test_every_tensor_is_looked_at(load: Callable[..., nn.Module], state: dict[str, Tensor], name: str) -> None:
    """Another dtype, another kind of numbers, or one entry that is not finite: in any tensor."""
    t = state[name]
    others = len(state) - 1
    for dtype in {torch.float16, torch.bfloat16, torch.float32, torch.float64} - {t.dtype}:
        with pytest.raises(ValueError, match="several dtypes") as caught:
            load({**state, name: t.to(dtype)})
        assert f"{others} are {t.dtype}, but not {name} ({dtype})" in str(caught.value)
    for dtype in (torch.int64, torch.bool, torch.complex64, torch.uint8):
        with pytest.raises(ValueError, match="weights are dense, and float16") as caught:
            load({**state, name: t.to(dtype)})
        assert f"{name} is {dtype}" in str(caught.value)
    for value in (math.nan, math.inf, -math.inf):
        bad = t.clone()
        bad.view(-1)[t.numel() // 2] = value
        with pytest.raises(ValueError, match="has 1 entries that are NaN or infinite") as caught:
            load({**state, name: bad})
        assert name in str(caught.value)


@pytest.mark.parametrize(("load", "state"), LOADERS)
def test_all_tensors_of_another_kind(load: Callable[..., nn.Module], state: dict[str, Tensor]) -> None:
    with pytest.raises(ValueError, match=r"is torch.int64: weights are"):
        load({name: t.long() for name, t in state.items()})
    with pytest.raises(ValueError, match="on the meta device"):
        load({name: t.to("meta") for name, t in state.items()})
    with pytest.raises(ValueError, match=r"is torch.sparse_coo: weights are dense"):
        load({name: t.to_sparse() for name, t in state.items()})
    with pytest.raises(ValueError, match=r"is torch.float8_e4m3fn"):
        load({name: t.to(torch.float8_e4m3fn) for name, t in state.items()})


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_one_dtype_is_kept(dtype: torch.dtype) -> None:
    op = operator({name: t.to(dtype) for name, t in STATE.items()})
    assert op.in_proj.weight.dtype == op.out_proj.bias.dtype == dtype


def test_an_output_layer_that_is_not_used_is_looked_at_too() -> None:
    head = DNA.state[TABLE].clone()
    head[0, 0] = math.nan
    with pytest.raises(ValueError, match=r"lm_head\.weight has 1 entries"):
        load_hyenadna({**DNA.state, "lm_head.weight": head}, DNA.config)


@pytest.mark.parametrize("which", ["z", "t"])
@pytest.mark.parametrize("learned", [None, False, True])
def test_a_table_with_nan_is_not_the_computed_one(which: str, learned: bool | None) -> None:
    from hyena.checkpoints.safari import SafariConfig

    config = CONFIG | {"lr_pos_emb": 0.0}
    state = dict(STATE)
    assert SafariConfig(**config).has_computed_positions(state)
    table = state[f"filter_fn.pos_emb.{which}"].clone()
    table[0, 7] = math.nan
    state[f"filter_fn.pos_emb.{which}"] = table
    assert not SafariConfig(**config).has_computed_positions(state)
    with pytest.raises(ValueError, match=f"pos_emb.{which} has . entries that are NaN"):
        load_safari_operator(state, config, learned_encoding=learned)


def test_names_that_are_no_strings() -> None:
    with pytest.raises(ValueError, match="entries are no tensors: 1"):
        load_safari_operator({**STATE, 1: torch.ones(1)}, CONFIG)


# --- configs ---

SIZES = ["d_model", "l_max", "order", "filter_order", "emb_dim", "num_inner_mlps", "short_filter_order", "num_blocks"]
NUMBERS = ["w", "dropout", "shift", "fast_decay_pct", "slow_decay_pct", "target", "lr_pos_emb", "modulation_lr"]
FLAGS = ["bias", "normalized", "modulate", "post_order_ffn"]
MODEL_SIZES = ["n_layer", "vocab_size", "d_inner", "pad_vocab_size_multiple", "n_classes", "d_model"]
MODEL_NUMBERS = ["resid_dropout", "embed_dropout", "layer_norm_epsilon"]


def refused(load: Callable[[], Any], *words: str) -> None:
    """It raises ValueError in well under a second, and says these words."""
    began = time.perf_counter()
    with pytest.raises(ValueError) as caught:  # noqa: PT011 (its words are compared below)
        load()
    assert time.perf_counter() - began < 1
    assert [word for word in words if word not in str(caught.value)] == []


@pytest.mark.parametrize("name", SIZES)
def test_every_size_of_an_operator(name: str) -> None:
    """Sizes are integers, and those that the weights contradict are refused before anything is built."""
    for value in (0.5, 64.0, "64", True, -1, -(10**30), None, [64], math.nan):
        refused(lambda v=value: operator(STATE, CONFIG | {name: v}), f"{name}={value!r} cannot be loaded")
    for value in (10**8 + 1, 10**12 + 1, 10**30 + 1):
        refused(
            lambda v=value: operator(STATE, CONFIG | {name: v}), str(value) if name in ("l_max", "num_blocks") else ""
        )
        refused(lambda v=value: operator({}, CONFIG | {name: v}))


@pytest.mark.parametrize("name", NUMBERS)
def test_every_number_of_an_operator(name: str) -> None:
    for value in (math.nan, math.inf, "1", True, [1.0], 1j):
        refused(lambda v=value: operator(STATE, CONFIG | {name: v}), f"{name}={value!r} cannot be loaded")
    if name not in ("w", "shift"):
        refused(lambda: operator(STATE, CONFIG | {name: -1.0}), f"{name}=-1.0 cannot be loaded")
    if name in ("dropout", "w", "shift"):
        refused(lambda: operator(STATE, CONFIG | {name: None}), f"{name}=None cannot be loaded")


@pytest.mark.parametrize("name", FLAGS)
def test_every_flag_of_an_operator(name: str) -> None:
    for value in (1, 0, "no", None):
        refused(lambda v=value: operator(STATE, CONFIG | {name: v}), f"{name}={value!r} cannot be loaded")


@pytest.mark.parametrize("name", MODEL_SIZES)
def test_every_size_of_a_model(name: str) -> None:
    for value in (0, 2.0, "2", True, -3, [2]):
        refused(lambda v=value: model(DNA.state, DNA.config | {name: v}), f"{name}={value!r}")
    if name != "n_classes":  # which the checkpoint of a model without a head does not contradict
        for value in (10**6, 10**12):
            refused(lambda v=value: model(DNA.state, DNA.config | {name: v}))
            refused(lambda v=value: model({}, DNA.config | {name: v}))


@pytest.mark.parametrize("name", MODEL_NUMBERS)
def test_every_number_of_a_model(name: str) -> None:
    for value in (math.nan, math.inf, -1.0, "0", True):
        refused(lambda v=value: model(DNA.state, DNA.config | {name: v}), f"={value!r} cannot be loaded")


@pytest.mark.parametrize("name", ["residual_in_fp32", "use_head", "checkpoint_mixer", "checkpoint_mlp"])
def test_every_flag_of_a_model(name: str) -> None:
    for value in (1, "yes", 0.0):
        refused(lambda v=value: model(DNA.state, DNA.config | {name: v}), f"{name}={value!r} cannot be loaded")


_SIZES = (
    "d_model",
    "n_layer",
    "d_inner",
    "vocab_size",
    "max_seq_len",
    "emb_dim",
    "filter_order",
    "activation_freq",
    "num_inner_mlps",
)
HF: dict[str, Any] = {name: HF_CONFIG[name] for name in _SIZES}


@pytest.mark.parametrize("name", [*HF, "pad_vocab_size_multiple", "hyena_order", "short_filter_order"])
def test_every_size_of_an_hf_model(name: str) -> None:
    load_hyenadna(DNA.state, HF)
    for value in (-1.5, "2", True, [2], math.nan):
        if name != "activation_freq" or value != -1.5:
            refused(lambda v=value: load_hyenadna(DNA.state, HF | {name: v}), f"={value!r} cannot be loaded")
    if name != "activation_freq":
        for value in (10**8 + 1, 10**12 + 1):
            refused(lambda v=value: load_hyenadna(DNA.state, HF | {name: v}))


@pytest.mark.parametrize(
    "wrong",
    [
        {"embed_dropout": 2},
        {"hyena_dropout": "0"},
        {"tie_word_embeddings": "no"},
        {"train_freq": 1},
        {"architectures": "HyenaDNAForCausalLM"},
        {"architectures": [1]},
        {"id2label": ["a", "b"]},
    ],
)
def test_other_values_of_an_hf_model(wrong: dict[str, Any]) -> None:
    (value,) = wrong.values()
    refused(lambda: load_hyenadna(DNA.state, HF | wrong), f"={value!r} cannot be loaded")


def test_numbers_of_layers_are_compared_with_the_weights_first() -> None:
    refused(
        lambda: operator(STATE, CONFIG | {"num_inner_mlps": 10**8}),
        "num_inner_mlps=100000000 makes 100000002 layers, but the checkpoint has 4",
        "missing keys: filter_fn.implicit_filter.8.weight",
    )
    refused(
        lambda: model(DNA.state, DNA.config | {"n_layer": 10**6}),
        "n_layer=1000000 makes 1000000 layers, but the checkpoint has 2",
        "missing keys: backbone.layers.2.",
    )
    layer = DNA.config["layer"] | {"num_inner_mlps": 10**8}
    refused(lambda: model(DNA.state, DNA.config | {"layer": layer}), "num_inner_mlps=100000000 makes")
    # Names that claim as many layers do not help.
    far = {**STATE, "filter_fn.implicit_filter.200000002.weight": STATE["filter_fn.implicit_filter.6.weight"]}
    refused(lambda: operator(far, CONFIG | {"num_inner_mlps": 10**8}), "does not fit its config")


def test_configs_of_another_kind() -> None:
    for layer in (None, [], "layer", 3):
        refused(lambda v=layer: model(DNA.state, DNA.config | {"layer": v}), "layer=", "the operator's keywords")
    for config in ([], 3, None):
        with pytest.raises((TypeError, ValueError), match=r"a config is a dict or a path|pass its config"):
            load_hyenadna(DNA.state, config)
    refused(lambda: operator(STATE, CONFIG | {1: 2, "b": 3}), "unknown keys", "1, b")
    refused(lambda: operator(STATE, CONFIG | {"activation": ["gelu"]}), "activation=['gelu'] cannot be loaded")
    with pytest.raises(ValueError, match="layout must be one of standalone, safari"):
        load_hyenadna(DNA.state, DNA.config, layout="zoology")


# --- files ---

DATA: dict[str, bytes] = {
    "empty": b"",
    "one byte": b"\x80",
    "text": b"not a checkpoint at all\n" * 20,
    "a zip of nothing": b"PK\x05\x06" + bytes(18),
    "JSON": b'{"weights": [1, 2, 3]}',
}


def cut(path: Path) -> bytes:
    return path.read_bytes()[: path.stat().st_size // 2]


@pytest.mark.parametrize("ending", [".safetensors", ".ckpt", ".bin", ".pt"])
@pytest.mark.parametrize("kind", [*DATA, "cut in half", "of the other format"])
def test_files_that_are_no_checkpoints(kind: str, ending: str, tmp_path: Path) -> None:
    save_file({name: t.contiguous().clone() for name, t in STATE.items()}, tmp_path / "good.safetensors")
    torch.save(STATE, tmp_path / "good.ckpt")
    same, other = ("good.safetensors", "good.ckpt")[:: 1 if ending == ".safetensors" else -1]
    data = {**DATA, "cut in half": cut(tmp_path / same), "of the other format": (tmp_path / other).read_bytes()}[kind]
    path = tmp_path / f"weights{ending}"
    path.write_bytes(data)
    (tmp_path / "config.json").write_text(json.dumps(DNA.config))
    for load in (lambda: load_safari_operator(path, CONFIG), lambda: load_hyenadna(path)):
        with pytest.raises(ValueError, match=r"A checkpoint is a .safetensors file, a file of torch.save") as caught:
            load()
        said = str(caught.value)
        assert said.startswith(f"{path} ")
        assert ("is empty" if not data else f"({len(data)} bytes)") in said
        chain = [said, str(caught.value.__cause__), "" if caught.value.__suppress_context__ else "context"]
        assert "weights_only" not in "".join(chain)
        assert chain[1:] == ["None", ""]


@pytest.mark.parametrize("name", ["none.ckpt", "none.safetensors", "LongSafari/hyenadna-tiny-1k-seqlen-hf"])
@pytest.mark.parametrize("with_config", [False, True])
def test_wrong_paths(name: str, with_config: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A wrong path is named itself, not a config.json beside it."""
    monkeypatch.chdir(tmp_path)
    for config in (None, DNA.config) if with_config else (None,):
        with pytest.raises(
            FileNotFoundError, match=r"does not exist .*; a checkpoint is a .safetensors file"
        ) as caught:
            load_hyenadna(name, config)
        assert str(caught.value).startswith(name)
        assert "config" not in str(caught.value)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        load_safari_operator(name, CONFIG)


def test_folders_and_things_that_are_no_files(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"none of model\.safetensors, .* is in .*; pass the path") as caught:
        load_hyenadna(tmp_path)
    assert str(tmp_path) in str(caught.value)
    torch.save(DNA.state, tmp_path / "weights.ckpt")
    for path in (tmp_path, tmp_path / "weights.ckpt"):
        with pytest.raises(FileNotFoundError, match=r"weights\.ckpt has no config\.json beside it: pass the model's"):
            load_hyenadna(path)
    for path in (3, [tmp_path]):
        with pytest.raises(TypeError, match="a checkpoint is a dict or a path, got"):
            load_hyenadna(path, DNA.config)
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe.ckpt")
        with pytest.raises(FileNotFoundError, match=r"pipe\.ckpt is not a file"):
            load_safari_operator(tmp_path / "pipe.ckpt", CONFIG)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[" * 100_000, b'{"d_model": 6,}'])
def test_config_files(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="is not a config, which is a JSON object") as caught:
        load_safari_operator(STATE, path)
    assert str(caught.value).startswith(f"{path} ({len(content)} bytes)")
    for missing in (tmp_path / "none.json", tmp_path / "folder"):
        (tmp_path / "folder").mkdir(exist_ok=True)
        with pytest.raises(FileNotFoundError, match=r"does not exist; a config is a .json file"):
            load_safari_operator(STATE, missing)
