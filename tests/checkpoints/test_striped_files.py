"""Layouts of files that StripedHyena's weights come in, and what is wrong with damaged ones."""

from __future__ import annotations

import io
import json
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from helpers.striped import first_generation, random_state, second_generation
from hyena.checkpoints import load_striped_hyena, striped_hyena_config
from hyena.checkpoints.striped import PUBLISHED

State = dict[str, Tensor]


@pytest.fixture
def config() -> dict[str, Any]:
    return second_generation()


@pytest.fixture
def state(config: dict[str, Any]) -> State:
    return random_state(config)


def split(state: State, count: int) -> list[State]:
    names = list(state)
    return [{name: state[name] for name in names[i::count]} for i in range(count)]


def write_shards(folder: Path, state: State, count: int = 3, suffix: str = "safetensors", index: bool = True) -> Path:
    """A folder as Hugging Face's are."""
    stem = "model" if suffix == "safetensors" else "pytorch_model"
    where = {}
    for i, part in enumerate(split(state, count)):
        name = f"{stem}-{i + 1:05d}-of-{count:05d}.{suffix}"
        save_file(part, folder / name) if suffix == "safetensors" else torch.save(part, folder / name)
        where |= dict.fromkeys(part, name)
    if index:
        text = json.dumps({"metadata": {"total_size": 1}, "weight_map": where})
        (folder / f"{stem}.{suffix}.index.json").write_text(text)
    return folder


def layouts(folder: Path, state: State) -> dict[str, Any]:
    """The same weights in every layout there is."""
    found: dict[str, Any] = {"state dict": state, "training checkpoint": {"state_dict": state, "step": 3}}
    for name in ("pt", "index", "no index", "bin"):
        (folder / name).mkdir()
    torch.save(state, folder / "pt" / "evo2.pt")
    torch.save({"model": {f"module.{n}": t for n, t in state.items()}}, folder / "wrapped.pt")
    save_file({f"backbone.{n}": t for n, t in state.items()}, folder / "one.safetensors")
    torch.save(state, folder / "old.pt", _use_new_zipfile_serialization=False)
    found |= {n: folder / n for n in ("pt", "wrapped.pt", "one.safetensors", "old.pt")}
    found |= {"file": folder / "pt" / "evo2.pt", "index": write_shards(folder / "index", state)}
    found["shards"] = write_shards(folder / "no index", state, index=False)
    found["one shard stands for all"] = folder / "no index" / "model-00002-of-00003.safetensors"
    found["the index"] = folder / "index" / "model.safetensors.index.json"
    found["bin"] = write_shards(folder / "bin", state, suffix="bin")
    return found


@torch.no_grad()
def test_every_layout_is_the_same_model(tmp_path: Path, config: dict[str, Any], state: State) -> None:
    ids = torch.randint(19, (1, 40))
    want = load_striped_hyena(state, config)(ids)
    for name, source in layouts(tmp_path, state).items():
        assert torch.equal(load_striped_hyena(source, config)(ids), want), name
    (tmp_path / "index" / "config.json").write_text(json.dumps(config))
    assert torch.equal(load_striped_hyena(tmp_path / "index")(ids), want)
    lines = [f"{k}: {json.dumps(v)}  # a note" for k, v in config.items()]
    (tmp_path / "evo.yml").write_text("\n".join(lines).replace("1e-06", "0.000001"))
    assert torch.equal(load_striped_hyena(state, tmp_path / "evo.yml")(ids), want)


def test_what_transformer_engine_adds(tmp_path: Path, config: dict[str, Any], state: State) -> None:
    config["use_fp8_input_projections"] = True
    extra: dict[str, Any] = {"blocks.0.projections._extra_state": io.BytesIO(b"scales")}
    extra["blocks.1.projections._extra_state"] = torch.zeros(3, dtype=torch.uint8)
    extra["blocks.3.mixer.attn._extra_state"] = extra["blocks.3.mixer.dense._extra_state"] = None
    extra["blocks.2.mixer.mixer.filter.t"] = torch.arange(200)[None, None]
    torch.save(state | extra, tmp_path / "evo2.pt")
    with pytest.warns(
        UserWarning, match=r"3 Hyena layers in FP8.*torch\.bfloat16, and the scales in its 4 .*outputs differ"
    ):
        model = load_striped_hyena(tmp_path / "evo2.pt", config, dtype=torch.bfloat16)
    assert model.embedding.weight.dtype == torch.bfloat16
    name = "blocks.1.projections.weight"
    state[name] = state[name].to(torch.float8_e4m3fn)
    with pytest.warns(
        UserWarning, match=rf"1 tensors are stored in FP8 \({name}\).*converted to torch.float32 exactly"
    ):
        model = load_striped_hyena(state, config)
    assert torch.equal(model.blocks[1].mixer.in_proj.weight.sort(0)[0], state[name].float().sort(0)[0])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float16, torch.float64])
def test_dtypes(config: dict[str, Any], dtype: torch.dtype) -> None:
    state = random_state(config, torch.bfloat16)
    model = load_striped_hyena(state, config, dtype=dtype)
    kept = torch.float32 if dtype.itemsize < 4 else dtype
    for name, p in model.named_parameters():
        assert p.dtype == (kept if ".filter." in name else dtype), name
    assert load_striped_hyena(state, config).norm.weight.dtype == torch.bfloat16
    assert model.head.weight is model.embedding.weight
    logits = model(torch.randint(19, (1, 9)))
    assert logits.dtype == dtype
    assert not model.training


def test_weights_that_fit_nowhere(config: dict[str, Any], state: State) -> None:
    del state["blocks.2.filter.D"]
    more = {"blocks.0.filter.D": torch.zeros(24), "blocks.1.mlp.l4.weight": torch.zeros(3)}
    short = state["blocks.0.filter.short_filter_weight"]
    more["blocks.0.filter.short_filter_weight"] = short.view(24, 3, 3)
    with pytest.raises(ValueError, match="does not fit") as caught:
        load_striped_hyena(state | more, config)
    for words in (
        "keys that fit nowhere: blocks.0.filter.D, blocks.1.mlp.l4.weight",
        "missing keys: blocks.2.filter.D",
        "blocks.0.filter.short_filter_weight is (24, 3, 3), the config makes it (72, 1, 3) (as many numbers",
    ):
        assert words in str(caught.value)
    with pytest.raises(ValueError, match=r"num_layers=3, but the checkpoint has blocks up to blocks\.3"):
        load_striped_hyena(state, {**config, "num_layers": 3, "attn_layer_idxs": []})


def test_weights_that_are_no_numbers(config: dict[str, Any], state: State) -> None:
    name = "blocks.1.mlp.l2.weight"
    for bad, match in ((torch.nan, "1 entries that are NaN"), (torch.inf, "blocks.1.mlp.fc1.weight has 1 entries")):
        broken = {**state, name: state[name].clone()}
        broken[name][3, 4] = bad
        with pytest.raises(ValueError, match=match):
            load_striped_hyena(broken, config)
    state[name][0, 0] = 1e6
    load_striped_hyena(state, config, dtype=torch.bfloat16)
    with pytest.raises(ValueError, match=r"NaN or infinite in torch\.float16"):
        load_striped_hyena(state, config, dtype=torch.float16)
    with pytest.raises(ValueError, match=r"floating-point numbers, but not norm\.scale \(torch\.int64\)"):
        load_striped_hyena({**state, "norm.scale": torch.ones(24, dtype=torch.long)}, config)
    with pytest.raises(ValueError, match=r"dtype must be one of .*got torch\.int8"):
        load_striped_hyena(state, config, dtype=torch.int8)
    with pytest.raises(ValueError, match="these entries are no tensors: step"):
        load_striped_hyena({**state, "step": 3}, config)
    with pytest.raises(ValueError, match="meta device"):
        load_striped_hyena({n: t.to("meta") for n, t in state.items()}, config)


@pytest.mark.parametrize("protocol", [2, 3])
@pytest.mark.parametrize("by_name", [False, True], ids=["by value", "by name"])
def test_recipes_of_a_package_that_is_not_installed(
    tmp_path: Path,
    config: dict[str, Any],
    state: State,
    monkeypatch: pytest.MonkeyPatch,
    by_name: bool,
    protocol: int,
) -> None:
    """Enumerations as Python 3.11.7 writes them, and as 3.11.2 does, by ``getattr``."""
    names = ("transformer_engine", "transformer_engine.common", "transformer_engine.common.recipe")
    modules = {name: types.ModuleType(name) for name in names}
    with monkeypatch.context() as patch:
        for name, module in modules.items():
            patch.setitem(sys.modules, name, module)
        recipe = modules[names[-1]]
        exec("import enum\nclass DelayedScaling: pass\nclass Format(enum.Enum): HYBRID = 1", recipe.__dict__)
        for kind in (recipe.DelayedScaling, recipe.Format):
            kind.__module__ = names[-1]
        reduced = (lambda e, _: (getattr, (type(e), e.name))) if by_name else (lambda e, _: (type(e), (e.value,)))
        recipe.Format.__reduce_ex__ = reduced
        scaling = recipe.DelayedScaling()
        scaling.format = recipe.Format.HYBRID
        torch.save(
            {**state, "blocks.0.projections._extra_state": {"recipe": scaling}},
            tmp_path / "evo2.pt",
            pickle_protocol=protocol,
        )
    ids = torch.randint(19, (1, 9))
    assert torch.equal(load_striped_hyena(tmp_path / "evo2.pt", config)(ids), load_striped_hyena(state, config)(ids))


class Reached:
    """Has an attribute that nobody may fetch by way of a file."""

    def __reduce__(self) -> tuple[Any, ...]:
        return getattr, (io.BytesIO, "getvalue")


def test_attributes_of_other_classes(tmp_path: Path, config: dict[str, Any], state: State) -> None:
    torch.save({**state, "blocks.0.projections._extra_state": Reached()}, tmp_path / "evo2.pt")
    with pytest.raises(ValueError, match="holds pickled Python objects"):
        load_striped_hyena(tmp_path / "evo2.pt", config)


def test_an_output_layer_that_is_tied(config: dict[str, Any], state: State) -> None:
    load_striped_hyena({**state, "unembed.weight": state["embedding_layer.weight"]}, config)
    with pytest.raises(ValueError, match=r"unembed\.weight differs from the embedding"):
        load_striped_hyena({**state, "unembed.weight": 2 * state["embedding_layer.weight"]}, config)


@pytest.mark.parametrize("generation", [first_generation, second_generation])
def test_rotary_frequencies_of_the_checkpoint(generation: Any) -> None:
    config = generation()
    state, ids = random_state(config), torch.randint(19, (1, 60))
    name = next(n for n in state if n.endswith("inv_freq"))
    want = load_striped_hyena(state, config)(ids)
    rounded = {**state, name: state[name].to(torch.bfloat16)}
    if generation is first_generation:  # computed again by the authors' code
        assert torch.equal(load_striped_hyena(rounded, config)(ids), want)
        rounded[name] = rounded[name].float()
    with pytest.warns(UserWarning, match="rotary frequencies differ"):
        model = load_striped_hyena(rounded, config)
    assert model.config.rotary_frequencies == tuple(rounded[name].double().tolist())
    assert (model(ids) - want).abs().max() > 1e-6


def test_damaged_files(tmp_path: Path, config: dict[str, Any], state: State) -> None:
    folder = write_shards(tmp_path, state)
    second = folder / "model-00002-of-00003.safetensors"
    whole = second.read_bytes()
    second.write_bytes(whole[: len(whole) - 100])
    with pytest.raises(ValueError, match=r"model-00002-of-00003\.safetensors \(\d+ bytes\) is damaged"):
        load_striped_hyena(folder, config)
    second.unlink()
    with pytest.raises(
        FileNotFoundError, match=r"1 of the 3 shards .* are not in .*: model-00002-of-00003\.safetensors"
    ):
        load_striped_hyena(folder, config)
    save_file({"norm.scale": torch.ones(24)}, second)
    with pytest.raises(ValueError, match=r"is in two files|names tensors that its shards do not hold"):
        load_striped_hyena(folder, config)
    file = tmp_path / "evo2.pt"
    torch.save({"norm.scale": torch.ones(24)}, file)
    with pytest.raises(ValueError, match=r"evo2\.pt: the checkpoint does not fit its config: missing keys: blocks"):
        load_striped_hyena(file, config)
    with pytest.raises(TypeError, match="a dict or a path, got a int"):
        load_striped_hyena(3, config)
    torch.save(state, file)
    file.write_bytes(file.read_bytes()[:-2000])
    with pytest.raises(ValueError, match=r"evo2\.pt \(\d+ bytes\) is damaged"):
        load_striped_hyena(file, config)
    torch.save({**state, "args": config.__class__.fromkeys}, tmp_path / "code.pt")
    with pytest.raises(ValueError, match=r"code\.pt holds pickled Python objects"):
        load_striped_hyena(tmp_path / "code.pt", config)
    (tmp_path / "evo2_40b.pt.part0").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"part0 is a piece of a file: join them first.*evo2_40b\.pt"):
        load_striped_hyena(tmp_path / "evo2_40b.pt.part0", config)
    (tmp_path / "pieces").mkdir()
    for number in (0, 1, 2, 10):
        (tmp_path / "pieces" / f"evo2_40b.pt.part{number}").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"pieces of a file, \S*part0, \S*part1, \S*part2, \S*part10: join them"):
        load_striped_hyena(tmp_path / "pieces", config)
    for path in (tmp_path / "none", tmp_path / "none.safetensors"):
        with pytest.raises(FileNotFoundError, match="does not exist"):
            load_striped_hyena(path, config)
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="holds no checkpoint"):
        load_striped_hyena(tmp_path / "empty", config)
    (tmp_path / "bad.index.json").write_text('{"weight_map": {"a": "../other.safetensors"}}')
    with pytest.raises(ValueError, match="no index of shards"):
        load_striped_hyena(tmp_path / "bad.index.json", config)


BAD_CONFIGS = {
    "unknown keys in the config of Evo 2: hcx_layer_idxs": {"hcx_layer_idxs": [3]},
    "the config lacks interleave": {"interleave": ...},
    "the config lacks column_split_hyena": {"column_split_hyena": ...},
    "either hyena_layer_idxs": {"hyena_layer_idxs": [0]},
    "one has none": {"hcs_layer_idxs": ..., "hcm_layer_idxs": ..., "hcl_layer_idxs": ...},
    "layers \\[2\\] of num_layers=4": {"hcl_layer_idxs": []},
    "names layer 3, but it is attention already": {"hcl_layer_idxs": [2, 3]},
    "names layer 9, but there are num_layers=4": {"hcl_layer_idxs": [2, 9]},
    "hyena_filter_groups=4": {"hyena_filter_groups": 4},
    "smeared_gqa=True": {"smeared_gqa": True},
    "long_fir_threshold=512": {"long_fir_threshold": 512},
    "proj_groups=2 cannot": {"proj_groups": 2},
    "below 128 of them in hcs": {"hcm_filter_length": 64},
    "hcs_filter_groups=6 and hcm_filter_groups=8 differ": {"hcm_filter_groups": 8},
    "mlp_activation='relu'": {"mlp_activation": "relu"},
    "interleave='yes'": {"interleave": "yes"},
    "hidden_size=24.5": {"hidden_size": 24.5, "num_filters": 24.5},
    "num_filters=12": {"num_filters": 12},
    "eps='small'": {"eps": "small"},
    "d_model=24 is not a multiple of num_heads=5": {"num_attention_heads": 5},
    "d_model=24 is not a multiple of groups=5": {"hcs_filter_groups": 5, "hcm_filter_groups": 5},
    "taps of MR layers reach further than rows of l_max=100": {"max_seqlen": 100},
    "pass l_max": {"max_seqlen": ...},
}


@pytest.mark.parametrize("words", BAD_CONFIGS)
def test_configs_that_mean_another_model(words: str, config: dict[str, Any], state: State) -> None:
    for name, value in BAD_CONFIGS[words].items():
        config.pop(name, None)
        if value is not ...:
            config[name] = value
    with pytest.raises(ValueError, match=words):
        load_striped_hyena(state, config)


def test_names_of_published_models(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"evo3_7b does not exist.*published model: .*evo2_7b"):
        striped_hyena_config("evo3_7b")
    (tmp_path / "list.yml").write_text("[1, 2]")
    with pytest.raises(ValueError, match="holds a list"):
        striped_hyena_config(tmp_path / "list.yml")
    with pytest.raises(TypeError, match="does not say how weights lie in files"):
        load_striped_hyena({}, striped_hyena_config("evo2_7b"))
    longer = striped_hyena_config("evo-1-8k-base", l_max=9000)
    assert longer.l_max == 9000
    assert len(PUBLISHED) == 11
