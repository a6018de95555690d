"""Saving HyenaDNA as the released models are: a folder with ``config.json`` and ``model.safetensors``."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hyena.checkpoints.hyenadna import load_hyenadna
from hyena.checkpoints.safari.filters import StoredEncoding
from hyena.filters import ExponentialWindow, HyenaFilter, LearnedEncoding, PositionalEncoding, SineFFN
from hyena.generation.protocol import eval_mode
from hyena.mixers import HyenaOperator
from hyena.models.hyenadna import WINDOW_SHIFT, HyenaDNA, HyenaDNAConfig

_ARCHITECTURES = {None: "HyenaDNAModel", "lm": "HyenaDNAForCausalLM", "classes": "HyenaDNAForSequenceClassification"}
# The released window's, which the -hf models have without saying so.
_WINDOW = {"slow_decay_pct": 1.5, "fast_decay_pct": 0.3, "target": 1e-2, "shift": WINDOW_SHIFT}
_COMPARED = 64  # positions at which a model is compared with what is read back


def save_hyenadna(model: HyenaDNA, folder: str | os.PathLike) -> None:
    """Saves a model so that :func:`load_hyenadna` reads it back, with equal outputs.

    The names and settings are those of the ``-hf`` models (``HyenaDNAForCausalLM`` and so on), or of the original code
    where only that has them (classes read from the mean of the hidden states). What is written has been read back
    before and compared.

    Args:
        model: with any head. ``gradient_checkpointing`` is not saved.
        folder: is made if it is not there; ``config.json`` and ``model.safetensors`` in it are replaced.

    Raises:
        ValueError: a model that the released formats cannot describe, with the reason: other mixers, filters extended
            to another length than their own, filters trained in float32 in a model of lower precision.
        ModuleNotFoundError: without the ``safetensors`` package.
    """
    try:
        from safetensors.torch import save_file
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "saving a model needs the safetensors package: pip install safetensors", name="safetensors"
        ) from error
    config, tensors = released_form(model)
    place = Path(folder)
    place.mkdir(parents=True, exist_ok=True)
    for name, write in (
        ("model.safetensors", lambda path: save_file(tensors, path, metadata={"format": "pt"})),
        ("config.json", lambda path: path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")),
    ):
        new = place / f".{name}.tmp"
        write(new)
        os.replace(new, place / name)


def released_form(model: HyenaDNA) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The settings and the tensors that :func:`save_hyenadna` writes, read back and compared.

    Raises:
        ValueError: a model that the released formats cannot describe, with the reason.
    """
    c = model.config
    parts = [_Mixer(f"blocks.{i}.mixer", block.mixer, model) for i, block in enumerate(model.blocks)]
    if any(part.keywords != parts[0].keywords for part in parts):
        raise ValueError("the released formats have one set of settings for all layers, and these differ")
    is_hf = _is_hf(c, parts[0])
    config = _hf_config(c, parts[0]) if is_hf else _original_config(c, parts[0])
    tensors = _tensors(model, parts, "hyena." if is_hf else "")
    _check(model, load_hyenadna(tensors, config))
    return config, tensors


class _Mixer:
    """One mixer by its released keywords and tensors.

    Args:
        name: of it, for errors.
        mixer: any module.
        model: that it is in.
    """

    def __init__(self, name: str, mixer: Any, model: HyenaDNA) -> None:
        c = model.config

        def need(good: bool, what: str) -> None:
            if not good:
                raise ValueError(f"{name} cannot be saved in a released format, which needs {what}")

        need(isinstance(mixer, HyenaOperator), f"a HyenaOperator, not a {type(mixer).__name__}")
        filter, short = mixer.conv.filter, mixer.short
        need(isinstance(filter, HyenaFilter), f"a HyenaFilter, not a {type(filter).__name__}")
        need(
            mixer.causal and mixer.num_heads == 1 and not mixer.value_filter and mixer.width == c.d_model,
            "a causal operator with one head, inner_factor=1 and no value_filter",
        )
        need(filter.channels == c.d_model and mixer.in_proj.bias is not None, "filters for each channel, and biases")
        need(mixer.activation is None, "no activation")
        need(getattr(mixer, "num_blocks", 1) == 1, "num_blocks=1")
        need(getattr(mixer, "head_mixing", None) is None, "no post_order_ffn")
        need(filter.l_max == c.l_max, f"filters of l_max={c.l_max}, not {filter.l_max}")
        encoding, ffn, window = filter.encoding, filter.ffn, filter.window
        need(isinstance(encoding, (PositionalEncoding, LearnedEncoding)), "a PositionalEncoding or LearnedEncoding")
        need(isinstance(ffn, SineFFN), "a SineFFN")
        need(isinstance(window, ExponentialWindow), "an ExponentialWindow")
        if isinstance(encoding, PositionalEncoding):
            unit = int(encoding.time_unit)
            need(
                unit == c.l_max,
                f"filters whose time reaches 1 at l_max={c.l_max}, not at {unit}: before extend(), or after "
                'extend(mode="stretch")',
            )
        self.dtype = mixer.in_proj.weight.dtype
        self.name, self.mixer, self.learned = name, mixer, isinstance(encoding, LearnedEncoding)
        slow, fast = (math.log(_WINDOW["target"]) / end for end in window.ends)
        self.window = {**_WINDOW, "slow_decay_pct": slow, "fast_decay_pct": fast, "shift": window.shift}
        self.window = {k: v if not math.isclose(v, _WINDOW[k]) else _WINDOW[k] for k, v in self.window.items()}
        self.trains_table = self.learned and encoding.table.requires_grad
        self.trains_window = isinstance(window.deltas, torch.nn.Parameter)
        self.keywords: dict[str, Any] = {
            "order": mixer.order,
            "filter_order": ffn.hidden[0].out_features,
            "emb_dim": encoding.emb_dim,
            "num_inner_mlps": len(ffn.hidden) - 1,
            "w": float(ffn.initial_freq),
            "short_filter_order": short.weight.size(1),
            "dropout": mixer.dropout.p,
            "train_freq": ffn.freq.requires_grad,
            "trains_table": self.trains_table,
            "trains_window": self.trains_window,
            **self.window,
        }

    def tensors(self) -> dict[str, Tensor]:
        """The weights by their released names."""
        mixer, filter, c = self.mixer, self.mixer.conv.filter, self.keywords
        ffn, encoding = filter.ffn, filter.encoding
        length = filter.l_max
        found = {
            "in_proj.weight": mixer.in_proj.weight,
            "in_proj.bias": mixer.in_proj.bias,
            "out_proj.weight": mixer.out_proj.weight,
            "out_proj.bias": mixer.out_proj.bias,
            "short_filter.weight": mixer.short.weight[:, None],
            "short_filter.bias": mixer.short.bias,
            "filter_fn.bias": mixer.conv.bias.flatten(),
            "filter_fn.modulation.deltas": filter.window.deltas[None, None],
            f"filter_fn.implicit_filter.{2 * (c['num_inner_mlps'] + 1)}.weight": ffn.out.weight,
        }
        for i, layer in enumerate(ffn.hidden):
            found |= {f"filter_fn.implicit_filter.{2 * i}.{kind}": getattr(layer, kind) for kind in ("weight", "bias")}
            found[f"filter_fn.implicit_filter.{2 * i + 1}.freq"] = ffn.freq[None]
        if self.learned:
            time = encoding.time if isinstance(encoding, StoredEncoding) else torch.linspace(0, 1, length)
            found |= {"filter_fn.pos_emb.z": encoding.table[None], "filter_fn.pos_emb.t": time[None, :, None]}
        exact = {f"mixer.{name}": self._exactly(name, t.detach()) for name, t in found.items()}
        if not self.learned:  # known from l_max, but the released code reads them all the same
            features, time = encoding(length, torch.device("cpu"), torch.promote_types(self.dtype, torch.float32))
            computed = {"z": features[None], "t": time[None, :, None]}
            exact |= {f"mixer.filter_fn.pos_emb.{name}": t.to(self.dtype) for name, t in computed.items()}
        return exact

    def _exactly(self, name: str, t: Tensor) -> Tensor:
        """A tensor in the model's dtype: a checkpoint has one."""
        t = t.cpu()
        if not torch.equal(t.to(self.dtype).to(t.dtype), t):
            raise ValueError(
                f"{self.name} is {self.dtype}, which does not hold the {t.dtype} values of {name}; a checkpoint has "
                "one dtype: save model.float()"
            )
        return t.to(self.dtype)


def _tensors(model: HyenaDNA, parts: list[_Mixer], prefix: str) -> dict[str, Tensor]:
    """All weights by their released names, none sharing memory with another."""
    c = model.config
    backbone = f"{prefix}backbone."
    found: dict[str, Tensor] = {
        f"{backbone}embeddings.word_embeddings.weight": model.embedding.weight,
        f"{backbone}ln_f.weight": model.norm.weight,
        f"{backbone}ln_f.bias": model.norm.bias,
    }
    for i, (block, part) in enumerate(zip(model.blocks, parts, strict=True)):
        layer = f"{backbone}layers.{i}."
        for name in ("norm1", "norm2", "mlp.fc1", "mlp.fc2"):
            module = block.get_submodule(name)
            found |= {f"{layer}{name}.{kind}": getattr(module, kind) for kind in ("weight", "bias")}
        found |= {layer + name: t for name, t in part.tensors().items()}
    if model.head is not None:
        if c.head == "lm":
            found["lm_head.weight"] = model.head.weight
        else:
            kinds = (
                {"weight": "score.weight"}
                if prefix
                else {kind: f"head.output_transform.{kind}" for kind in ("weight", "bias")}
            )
            found |= {theirs: getattr(model.head, ours) for ours, theirs in kinds.items()}
    return {name: t.detach().cpu().clone().contiguous() for name, t in found.items()}


def _is_hf(c: HyenaDNAConfig, part: _Mixer) -> bool:
    """Whether a model is written as an ``-hf`` one; what only the original code has is hidden states and classes."""
    if c.head == "classes":
        return c.pooling == "last" and not c.head_bias
    fits = (part.keywords["order"], c.norm_eps) == (2, 1e-5) and part.window == _WINDOW and not part.trains_window
    return fits or c.head == "lm"


def _hf_config(c: HyenaDNAConfig, part: _Mixer) -> dict[str, Any]:
    """The settings as the ``-hf`` models have them."""
    k = part.keywords
    if part.window != _WINDOW or part.trains_window:
        raise ValueError(f"an -hf model has the window {_WINDOW}, not trained; this one has {part.window}")
    return {
        "architectures": [_ARCHITECTURES[c.head]],
        "model_type": "hyenadna",
        "d_model": c.d_model,
        "n_layer": c.num_layers,
        "d_inner": c.d_inner or 4 * c.d_model,
        "vocab_size": c.vocab_size,
        "max_seq_len": c.l_max,
        "emb_dim": k["emb_dim"],
        "filter_order": k["filter_order"],
        "activation_freq": k["w"],
        "num_inner_mlps": k["num_inner_mlps"],
        "hyena_order": k["order"],
        "hyena_dropout": k["dropout"],
        "hyena_filter_dropout": 0.0,
        "short_filter_order": k["short_filter_order"],
        "train_freq": k["train_freq"],
        "embed_dropout": c.embed_dropout,
        "resid_dropout": c.dropout,
        "layer_norm_epsilon": c.norm_eps,
        "residual_in_fp32": c.residual_in_fp32,
        "pad_vocab_size_multiple": c.pad_vocab_size_multiple,
        "pad_token_id": 4,
        "tie_word_embeddings": c.tie_embeddings,
        "torch_dtype": str(part.dtype).removeprefix("torch."),
        "use_bias": True,
        **({"id2label": {str(i): f"LABEL_{i}" for i in range(c.num_classes)}} if c.head == "classes" else {}),
    }


def _original_config(c: HyenaDNAConfig, part: _Mixer) -> dict[str, Any]:
    """The settings as the original code has them."""
    k = part.keywords
    if not k["train_freq"]:
        raise ValueError("the original code has no train_freq=False, for a model whose freq is not trained")
    same = ("order", "filter_order", "emb_dim", "num_inner_mlps", "w", "short_filter_order", "dropout")
    return {
        "d_model": c.d_model,
        "n_layer": c.num_layers,
        "d_inner": c.d_inner or 4 * c.d_model,
        "vocab_size": c.vocab_size,
        "resid_dropout": c.dropout,
        "embed_dropout": c.embed_dropout,
        "layer_norm_epsilon": c.norm_eps,
        "residual_in_fp32": c.residual_in_fp32,
        "pad_vocab_size_multiple": c.pad_vocab_size_multiple,
        "use_head": c.head == "classes",
        "n_classes": c.num_classes,
        "layer": {
            "_name_": "hyena",
            "l_max": c.l_max,
            **{name: k[name] for name in same},
            **part.window,
            "modulation_lr": 1e-5 if part.trains_window else 0.0,
            "lr_pos_emb": 1e-5 if part.trains_table else 0.0,
        },
    }


def _check(model: HyenaDNA, again: HyenaDNA) -> None:
    """Raises ValueError if a model that was read back is another one."""
    ours, theirs = (_told(m.config) for m in (model, again))
    changed = [f"{name}={ours[name]!r}" for name in ours if ours[name] != theirs[name]]
    if changed:
        raise ValueError(f"the released formats cannot say {', '.join(changed)} of this model")
    device, length = model.device, min(model.config.l_max, _COMPARED)
    tokens = (torch.arange(length, device=device) * 7 % model.config.vocab_size)[None]
    again = again.to(device)
    with torch.no_grad(), eval_mode(model), eval_mode(again):
        want, got = model(tokens), again(tokens)
    if got.dtype != want.dtype or not torch.allclose(got.double(), want.double(), rtol=1e-5, atol=1e-6):
        raise ValueError(
            f"the model read back differs by {(got.double() - want.double()).abs().max():.3g}: it has something that a "
            "released format cannot say"
        )


def _told(c: HyenaDNAConfig) -> dict[str, Any]:
    """What of a config matters, given its head."""
    values = {**dataclasses.asdict(c), "d_inner": c.d_inner or 4 * c.d_model}
    unused = ["gradient_checkpointing"]
    unused += [] if c.head == "classes" else ["num_classes", "pooling", "head_bias"]
    unused += [] if c.head == "lm" else ["tie_embeddings"]
    return {name: value for name, value in values.items() if name not in unused}
