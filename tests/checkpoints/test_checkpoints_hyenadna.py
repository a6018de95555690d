"""Loading HyenaDNA: golden hidden states, every way its checkpoints are named and stored, heads, and what raises."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from helpers.released import HF_CONFIG, deviation, golden, operator
from hyena.checkpoints import hyenadna
from hyena.filters import LearnedEncoding, PositionalEncoding

GOLDEN = golden("hyenadna_tiny")
TOKENS, WANT = GOLDEN.tensors["input_ids"], GOLDEN.tensors["output"]
TABLE = "backbone.embeddings.word_embeddings.weight"


def changed(**changes: Any) -> dict[str, Any]:
    """The golden config with changes; those under ``layer`` change its layer."""
    config = copy.deepcopy(GOLDEN.config)
    config["layer"] |= changes.pop("layer", {})
    return config | changes


def renamed(name: Callable[[str], str]) -> dict[str, Tensor]:
    return {name(key): t for key, t in GOLDEN.state.items()}


def hf_state() -> dict[str, Tensor]:
    """As safetensors keeps it: one name for the freq that a filter's layers share."""
    state = renamed(lambda key: "hyena." + key)
    state = {key: t for key, t in state.items() if not key.endswith(("3.freq", "5.freq"))}
    return state | {"lm_head.weight": torch.randn(16, 32)}


def definition(state: dict[str, Tensor], config: dict[str, Any], tokens: Tensor) -> Tensor:
    """The released model by definition, in the dtype of ``state``."""
    x = state[TABLE][tokens]
    layer = config["layer"] | {"d_model": config["d_model"], "shift": 0.05}
    for i in range(config["n_layer"]):
        block = {
            key.removeprefix(f"backbone.layers.{i}."): t
            for key, t in state.items()
            if key.startswith(f"backbone.layers.{i}.")
        }
        mixer = {key.removeprefix("mixer."): t for key, t in block.items() if key.startswith("mixer.")}
        x = x + operator(mixer, layer, _norm(x, block, "norm1"), "standalone")
        inner = _norm(x, block, "norm2") @ block["mlp.fc1.weight"].T + block["mlp.fc1.bias"]
        inner = 0.5 * inner * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (inner + 0.044715 * inner**3)))
        x = x + inner @ block["mlp.fc2.weight"].T + block["mlp.fc2.bias"]
    return _norm(x, state, "backbone.ln_f")


def _norm(x: Tensor, state: dict[str, Tensor], name: str) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    scaled = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    return scaled * state[name + ".weight"] + state[name + ".bias"]


def test_golden_hidden_states() -> None:
    model = hyenadna(GOLDEN.state, GOLDEN.config)
    assert model.training
    model.eval()
    assert deviation(model(TOKENS), WANT) < 1e-5
    with torch.no_grad():
        for _ in range(2):
            assert deviation(model(TOKENS), WANT) < 1e-5
    assert isinstance(model.blocks[0].mixer.conv.filter.encoding, PositionalEncoding)


def test_golden_hidden_states_in_chunks_and_steps() -> None:
    model = hyenadna(GOLDEN.state, GOLDEN.config).eval()
    state = model.init_state(TOKENS.size(0), TOKENS.size(1))
    first, state = model.prefill(TOKENS[:, :9], state)
    rest = [model.step(TOKENS[:, t], state)[0] for t in range(9, TOKENS.size(1))]
    assert deviation(torch.cat([first, torch.stack(rest, dim=1)], dim=1), WANT) < 1e-5


def test_gradients_against_the_definition() -> None:
    state = {key: t.double().requires_grad_() for key, t in GOLDEN.state.items() if t.is_floating_point()}
    want = definition(state, GOLDEN.config, TOKENS)
    dy = torch.randn_like(want)
    want.backward(dy)
    held = {key: t.detach() for key, t in state.items()}
    model = hyenadna(held, GOLDEN.config, learned_encoding=True).eval()
    y = model(TOKENS)
    y.backward(dy)
    assert deviation(y, want) < 1e-10
    assert deviation(model.embedding.weight.grad, state[TABLE].grad) < 1e-10
    for i in range(2):
        block, mixer = model.blocks[i], model.blocks[i].mixer
        layer = f"backbone.layers.{i}."
        for ours, theirs in (
            (block.mlp.fc1.weight, "mlp.fc1.weight"),
            (block.norm2.bias, "norm2.bias"),
            (mixer.in_proj.weight, "mixer.in_proj.weight"),
            (mixer.conv.filter.ffn.out.weight, "mixer.filter_fn.implicit_filter.6.weight"),
            (mixer.conv.filter.ffn.hidden[0].weight, "mixer.filter_fn.implicit_filter.0.weight"),
            (mixer.conv.filter.encoding.table[None], "mixer.filter_fn.pos_emb.z"),
        ):
            got = mixer.conv.filter.encoding.table.grad[None] if theirs.endswith("z") else ours.grad
            assert deviation(got, state[layer + theirs].grad) < 1e-10, theirs


@pytest.mark.parametrize(
    "name",
    [
        lambda key: "model." + key,
        lambda key: "module.model." + key,
        lambda key: "hyena." + key,
        lambda key: key.removeprefix("backbone."),
        lambda key: "model." + key.replace(".mixer.", ".mixer.layer.").replace(".mlp.", ".mlp.layer."),
        lambda key: "_orig_mod.model." + key.replace("layers.0.", "layers.0._checkpoint_wrapped_module."),
    ],
    ids=["lightning", "ddp", "hf", "bare", "checkpointed", "compiled"],
)
def test_names_with_and_without_prefixes(name: Callable[[str], str]) -> None:
    model = hyenadna(renamed(name), GOLDEN.config).eval()
    assert deviation(model(TOKENS), WANT) < 1e-5


def test_a_lightning_checkpoint_with_all_that_is_in_it(tmp_path: Path) -> None:
    state = renamed(lambda key: "model." + key)
    state |= {"model.lm_head.weight": state["model." + TABLE], "train_torchmetrics.num-tokens.count": torch.tensor(3)}
    torch.save({"epoch": 1, "state_dict": state, "optimizer_states": [{"lr": 1e-3}]}, tmp_path / "weights.ckpt")
    # What the released config.json holds beside what the golden config has.
    config = changed(
        fused_mlp=False,
        fused_dropout_add_ln=True,
        checkpoint_mixer=True,
        checkpoint_mlp=True,
        residual_in_fp32=True,
        return_hidden_state=True,
    )
    (tmp_path / "config.json").write_text(json.dumps(config))
    model = hyenadna(tmp_path / "weights.ckpt", tmp_path / "config.json").eval()
    assert deviation(model(TOKENS), WANT) < 1e-5
    assert model.config.gradient_checkpointing
    for path in (tmp_path, tmp_path / "weights.ckpt"):  # the config lies beside the weights
        assert deviation(hyenadna(str(path)).eval()(TOKENS), WANT) < 1e-5


def test_the_hf_model(tmp_path: Path) -> None:
    state = hf_state()
    save_file({key: t.contiguous() for key, t in state.items()}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(HF_CONFIG))
    model = hyenadna(tmp_path).eval()
    assert deviation(model(TOKENS), WANT @ state["lm_head.weight"].T) < 1e-5
    assert deviation(model.hidden_states(TOKENS), WANT) < 1e-5
    assert deviation(hyenadna(state, HF_CONFIG, head=None).eval()(TOKENS), WANT) < 1e-5
    # Trainable in that code, but not trained: computed, and the model's size does not grow with l_max.
    assert isinstance(model.blocks[1].mixer.conv.filter.encoding, PositionalEncoding)
    key = "hyena.backbone.layers.0.mixer.filter_fn.pos_emb.z"
    tuned = hyenadna({**state, key: state[key] + 0.1}, HF_CONFIG)
    assert isinstance(tuned.blocks[0].mixer.conv.filter.encoding, LearnedEncoding)
    assert tuned.blocks[0].mixer.conv.filter.encoding.table.requires_grad


def test_the_output_layer() -> None:
    model = hyenadna(GOLDEN.state, GOLDEN.config, head="lm").eval()
    assert model.head.weight is model.embedding.weight
    logits = WANT @ GOLDEN.state[TABLE].T
    assert deviation(model(TOKENS), logits) < 1e-5
    state = {**GOLDEN.state, "lm_head.weight": GOLDEN.state[TABLE]}
    assert deviation(hyenadna(state, GOLDEN.config, head="lm").eval()(TOKENS), logits) < 1e-5
    assert deviation(hyenadna(state, GOLDEN.config).eval()(TOKENS), WANT) < 1e-5
    state["lm_head.weight"] = state["lm_head.weight"] + 1
    with pytest.raises(ValueError, match="differs from the embedding"):
        hyenadna(state, GOLDEN.config, head="lm")
    with pytest.raises(ValueError, match=r"missing keys: lm_head\.weight"):
        hyenadna(renamed(lambda key: "hyena." + key), HF_CONFIG)


@pytest.mark.usefixtures("nan_filled")
def test_class_logits() -> None:
    weight, bias = torch.randn(3, 32), torch.randn(3)
    state = {**GOLDEN.state, "head.output_transform.weight": weight, "head.output_transform.bias": bias}
    model = hyenadna(state, changed(use_head=True, n_classes=3)).eval()
    assert deviation(model(TOKENS), WANT.mean(1) @ weight.T + bias) < 1e-5
    with pytest.warns(UserWarning, match="starts at random"):
        fresh = hyenadna(GOLDEN.state, changed(use_head=True, n_classes=5)).eval()
    assert fresh(TOKENS).shape == (2, 5)
    assert 0.01 < fresh.head.weight.std() < 0.03
    assert torch.equal(fresh.head.bias, torch.zeros(5))
    with pytest.raises(ValueError, match=r"head\.output_transform\.weight is \(3, 32\), the config makes it \(4, 32\)"):
        hyenadna(state, changed(use_head=True, n_classes=4))
    del state["head.output_transform.bias"]
    with pytest.raises(ValueError, match=r"missing keys: head\.output_transform\.bias"):
        hyenadna(state, changed(use_head=True, n_classes=3))
    state["head.output_transform.bias"] = bias
    with pytest.raises(ValueError, match=r"fit nowhere: head\.output_transform\.bias, head\.output_transform\.weight"):
        hyenadna(state, GOLDEN.config)


@pytest.mark.parametrize("labels", [{"num_labels": 3}, {"id2label": {"0": "a", "1": "b", "2": "c"}}])
def test_a_sequence_classifier_of_the_hf_code(labels: dict[str, Any], tmp_path: Path) -> None:
    """As transformers saves a fine-tuned ``HyenaDNAForSequenceClassification``."""
    weight = torch.randn(3, 32)
    state = {key: t for key, t in hf_state().items() if key != "lm_head.weight"} | {"score.weight": weight}
    config = HF_CONFIG | {"architectures": ["HyenaDNAForSequenceClassification"]} | labels
    save_file({key: t.contiguous() for key, t in state.items()}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(config))
    model = hyenadna(tmp_path).eval()
    assert model.head.bias is None
    assert deviation(model(TOKENS), WANT[:, -1] @ weight.T) < 1e-5

    # Padded on either side, a row is read at the last of its own positions.
    row, padding = TOKENS[:1, :9], torch.full((1, 3), 4)
    alone = model(row)
    for tokens, mask in (
        (torch.cat([padding, row], dim=1), [0] * 3 + [1] * 9),
        (torch.cat([row, padding], dim=1), [1] * 9 + [0] * 3),
    ):
        for m in (torch.tensor([mask]), torch.tensor([mask]).bool()):
            assert deviation(model(tokens, m), alone) < 1e-5

    with pytest.raises(ValueError, match=r"score\.weight is \(3, 32\), the config makes it \(5, 32\)"):
        hyenadna(state, {**config, "num_labels": 5, "id2label": None})
    with pytest.raises(ValueError, match="num_labels=5, but id2label names 3 classes"):
        hyenadna(state, {**config, "num_labels": 5, "id2label": {"0": "a", "1": "b", "2": "c"}})
    for bad in (0, 2.5, "3", True):
        with pytest.raises(ValueError, match=f"num_labels={bad!r} cannot be loaded"):
            hyenadna(state, {**config, "num_labels": bad, "id2label": None})
    with pytest.raises(ValueError, match=r"fit nowhere: score\.weight"):
        hyenadna(state, config, head=None)


def test_a_classifier_that_is_new_has_as_many_classes_as_the_config_says() -> None:
    with pytest.warns(UserWarning, match="starts at random"):
        model = hyenadna(hf_state(), HF_CONFIG | {"num_labels": 4}, head="classes")
    assert model(TOKENS).shape == (2, 4)
    with pytest.warns(UserWarning, match="starts at random"):
        assert hyenadna(hf_state(), HF_CONFIG, head="classes")(TOKENS).shape == (2, 2)


def test_keys_that_do_not_fit_are_listed() -> None:
    state = renamed(lambda key: "model." + key)
    del state["model.backbone.layers.1.norm1.weight"]
    state |= {"encoder.weight": torch.ones(1), "model.backbone.layers.2.norm1.weight": torch.ones(32)}
    with pytest.raises(ValueError, match="does not fit its config") as caught:
        hyenadna(state, GOLDEN.config)
    message = str(caught.value)
    assert "keys that fit nowhere: backbone.layers.2.norm1.weight, encoder.weight" in message
    assert "missing keys: backbone.layers.1.norm1.weight" in message
    with pytest.raises(ValueError, match=r"missing keys: .*word_embeddings"):
        hyenadna({}, GOLDEN.config)
    with pytest.raises(ValueError, match="holds 2 models"):
        hyenadna(renamed(lambda key: "a." + key) | renamed(lambda key: "b." + key), GOLDEN.config)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (changed(n_heads=4, depth=2), "unknown keys in the config of a HyenaDNA model: depth, n_heads"),
        (changed(layer={"heads": 4}), "unknown keys in the config of a Hyena operator: heads"),
        (changed(layer={"l_max": 1026}), "l_max=66, the config says l_max=1026"),
        (changed(layer={"d_model": 64}), "d_model=32, but layer has d_model=64"),
        (changed(layer={"num_blocks": 2}), "num_blocks=2 cannot be loaded"),
        (changed(attn_layer_idx=[1]), r"attn_layer_idx=\[1\] cannot be loaded"),
        (changed(_name_="model"), "_name_='model' cannot be loaded"),
        (changed(n_layer=3), r"missing keys: backbone\.layers\.2\."),
        (changed(vocab_size=20), r"word_embeddings\.weight is \(16, 32\), the config makes it \(24, 32\)"),
        ({"layer": GOLDEN.config["layer"]}, "needs d_model, n_layer, vocab_size"),
        (HF_CONFIG | {"hyena_order": 3}, "hyena_order=3 cannot be loaded, only 2"),
        (HF_CONFIG | {"short_filter_order": 4}, "short_filter_order=4 cannot be loaded"),
        (HF_CONFIG | {"layer_norm_epsilon": 1e-12}, "layer_norm_epsilon=1e-12 cannot be loaded"),
        (HF_CONFIG | {"gate": 1}, "unknown keys in the config of an -hf HyenaDNA model: gate"),
    ],
)
def test_configs_that_raise(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        hyenadna(hf_state() if "architectures" in config else GOLDEN.state, config)


def test_other_errors(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="pass its config"):
        hyenadna(GOLDEN.state)
    with pytest.raises(ValueError, match="head must be"):
        hyenadna(GOLDEN.state, GOLDEN.config, head="mlm")
    with pytest.raises(FileNotFoundError, match=r"model\.safetensors"):
        hyenadna(tmp_path, GOLDEN.config)
    (tmp_path / "config.json").write_text("[]")
    torch.save(GOLDEN.state, tmp_path / "weights.ckpt")
    with pytest.raises(ValueError, match="holds a list"):
        hyenadna(tmp_path)
    torch.save(torch.ones(3), tmp_path / "weights.ckpt")
    with pytest.raises(ValueError, match="holds a Tensor, not a state dict"):
        hyenadna(tmp_path / "weights.ckpt", GOLDEN.config)


def test_the_training_codes_window() -> None:
    """HyenaDNA's training code lets the window decay to 0, its inference code to 0.05."""
    shifts = [
        hyenadna(GOLDEN.state, GOLDEN.config, layout=layout).blocks[0].mixer.conv.filter.window.shift
        for layout in ("standalone", "safari")
    ]
    assert shifts == [0.05, 0.0]


def test_half_precision_weights_and_loading_again() -> None:
    state = {key: t.to(torch.bfloat16) for key, t in GOLDEN.state.items()}
    model = hyenadna(state, changed(residual_in_fp32=True)).eval()
    assert {p.dtype for name, p in model.named_parameters() if ".conv.filter." not in name} == {torch.bfloat16}
    assert model(TOKENS).dtype == torch.bfloat16
    assert deviation(model(TOKENS), WANT) < 0.1
    again = hyenadna(GOLDEN.state, GOLDEN.config).eval()
    nn.init.zeros_(again.embedding.weight)
    again.load_state_dict(hyenadna(GOLDEN.state, GOLDEN.config).state_dict())
    assert deviation(again(TOKENS), WANT) < 1e-5
