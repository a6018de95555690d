"""Loading HyenaDNA's released models: the original checkpoints, and their ``-hf`` versions for transformers."""

from __future__ import annotations

import re
import warnings
from collections.abc import Container, Mapping
from typing import Any

import torch
from torch import Tensor

from hyena.checkpoints.checks import (
    Shapes,
    check_count,
    check_flag,
    check_integer,
    check_keys,
    check_names,
    check_number,
    check_values,
)
from hyena.checkpoints.files import Source, config_beside, read_config, read_weights, rename, weights_file
from hyena.checkpoints.safari.config import SafariConfig
from hyena.checkpoints.safari.operator import ReleasedOperator
from hyena.models.hyenadna import WINDOW_SHIFT, HyenaDNA, HyenaDNAConfig

# Settings of the original code that say how it trains and runs, not what it computes.
_ORIGINAL_WITHOUT_EFFECT = {
    "device",
    "dtype",
    "fused_dropout_add_ln",
    "fused_mlp",
    "initializer_cfg",
    "return_hidden_state",
}
# Settings of the original code that are taken with one value only: the others belong to models with attention, to
# models split over devices, or to none that was released.
_ORIGINAL_FIXED: dict[str, tuple[Any, ...]] = {
    "_name_": ("lm", "lm_simple", "dna_embedding"),
    "attn_cfg": (None,),
    "attn_layer_idx": (None, [], ()),
    "identity_mlp": (False,),
    "max_position_embeddings": (0,),
    "process_group": (None,),
    "sequence_parallel": (True, False),
}
_ORIGINAL = {
    "d_model",
    "n_layer",
    "d_inner",
    "vocab_size",
    "layer",
    "resid_dropout",
    "embed_dropout",
    "layer_norm_epsilon",
    "residual_in_fp32",
    "pad_vocab_size_multiple",
    "use_head",
    "n_classes",
    "checkpoint_mixer",
    "checkpoint_mlp",
}

# The -hf configs' names for an operator's keywords.
_HF_OPERATOR = {
    "d_model": "d_model",
    "max_seq_len": "l_max",
    "hyena_order": "order",
    "filter_order": "filter_order",
    "emb_dim": "emb_dim",
    "num_inner_mlps": "num_inner_mlps",
    "activation_freq": "w",
    "short_filter_order": "short_filter_order",
    "hyena_dropout": "dropout",
    "hyena_filter_dropout": "filter_dropout",
}
# Defaults of their HyenaConfig, where a config.json may leave the value out.
_HF_DEFAULTS: dict[str, Any] = {
    "vocab_size": 12,
    "d_model": 256,
    "max_seq_len": 1024,
    "emb_dim": 3,
    "n_layer": 12,
    "embed_dropout": 0.1,
    "layer_norm_epsilon": 1e-5,
    "pad_vocab_size_multiple": 8,
    # Of transformers' own PretrainedConfig.
    "tie_word_embeddings": True,
}
# What transformers writes into every config.json and the model does not read, or reads for its interface only;
# use_bias is read by no layer.
_HF_WITHOUT_EFFECT = {
    "_name_or_path",
    "architectures",
    "auto_map",
    "bos_token_id",
    "cls_token_id",
    "dtype",
    "eos_token_id",
    "id2label",
    "initializer_range",
    "label2id",
    "mask_token_id",
    "model_type",
    "num_labels",
    "output_hidden_states",
    "pad_token_id",
    "problem_type",
    "return_dict",
    "sep_token_id",
    "torch_dtype",
    "transformers_version",
    "unk_token_id",
    "use_bias",
    "use_cache",
    "use_return_dict",
}

# What the released operators' filters are laid out like; Zoology has no such models.
_LAYOUTS = ("standalone", "safari")
_LAYERS = "backbone.layers."
_LAYER = re.compile(re.escape(_LAYERS) + r"(\d{1,9})\.")
_EMBEDDING = "backbone.embeddings.word_embeddings.weight"
# Parts of a block that have the same names here and there.
_BLOCK_PARTS = [f"{part}.{kind}" for part in ("norm1", "norm2", "mlp.fc1", "mlp.fc2") for kind in ("weight", "bias")]


def load_hyenadna(
    state_dict_or_path: Source,
    config: Source | None = None,
    *,
    head: str | None = "auto",
    learned_encoding: bool | None = None,
    layout: str = "standalone",
) -> HyenaDNA:
    """A :class:`hyena.models.HyenaDNA` with the weights and outputs of a released model.

    Takes the checkpoints of ``LongSafari/hyenadna-*`` (``weights.ckpt``, a Lightning checkpoint) and of
    ``LongSafari/hyenadna-*-hf`` (``model.safetensors``), and what the HyenaDNA code (HazyResearch/hyena-dna,
    Apache-2.0) saves. Safari's own language models have the same names: give ``layout="safari"`` for them.

    Args:
        state_dict_or_path: a state dict, a checkpoint that holds one under ``"state_dict"``, or the path of a
            ``.safetensors`` file, of one that ``torch.load`` reads with ``weights_only``, or of a folder with one of
            them. Names may have prefixes (``model.``, ``module.``, ``hyena.``, ``backbone.``) and the ``.layer.`` of
            activation checkpointing.
        config: the settings as a dict, or the path of the ``config.json``; found beside the weights if missing.
            ``num_labels`` and ``id2label`` of an ``-hf`` config count with ``head="classes"`` only.
        head: what the model returns: None for hidden states, ``"lm"`` for next-token logits, ``"classes"`` for class
            logits. ``"auto"`` does what the released code does with the config: classes if it says ``use_head`` or its
            ``architectures`` name a sequence classifier, logits if they name a causal language model, else hidden
            states. Classes are read from the mean of the hidden states in an original model, and from the last position
            in an ``-hf`` one (``score.weight``).
        learned_encoding: as for :func:`load_safari_operator`. The ``-hf`` code makes positions trainable that were not
            trained; by default they are computed unless the checkpoint's have been trained.
        layout: how filters are laid out from order 3 on: ``"standalone"`` as in ``standalone_hyenadna.py``,
            ``"safari"`` as in the training code (and with its window, which decays to 0, not to 0.05). No released
            model has such an order.

    Returns:
        The model, in the dtype and on the device of its weights, in training mode.

    Raises:
        ValueError: keys of the weights or of the config that fit nowhere, missing keys, other shapes, all listed;
            weights that are not finite floating-point numbers of one dtype; positions for another ``l_max``; an output
            layer that differs from the embedding it is tied to; a file that is no checkpoint or no config.
        FileNotFoundError: no such file.
    """
    if not isinstance(state_dict_or_path, Mapping):
        weights_file(state_dict_or_path)  # a wrong path is the first thing to say
    values = read_config(config_beside(state_dict_or_path) if config is None else config)
    if layout not in _LAYOUTS:
        raise ValueError(f"layout must be one of {', '.join(_LAYOUTS)}, got {layout!r}")
    is_hf = "layer" not in values
    model_config, settings = (_hf if is_hf else _original)(values, head, layout)
    operator = ReleasedOperator(settings, layout, learned_encoding, goes_on=is_hf)
    tensors = _canonical(read_weights(state_dict_or_path))

    layers = _layers(tensors)
    setting = f"n_layer={model_config.num_layers}"
    check_count(setting, model_config.num_layers, layers, lambda i: f"{_LAYERS}{i}.norm1.weight")
    for part in layers.values():
        operator.check_sizes(part)
    used, output = _without_output_layer(tensors, model_config)
    check_names(used, *_shapes(model_config, operator, used))
    dtype = check_values(tensors)
    if output is not None and model_config.head == "lm" and not torch.equal(output, tensors[_EMBEDDING]):
        raise ValueError(
            "lm_head.weight differs from the embedding that this model ties it to; the config of an -hf model says "
            "tie_word_embeddings=False if it is a layer of its own"
        )

    like = tensors[_EMBEDDING]
    each = [operator.positions(layers[i]) for i in range(model_config.num_layers)]
    mixers = [operator.build(positions, dtype) for positions in each]
    model = HyenaDNA(model_config, mixers, device="meta", dtype=dtype).to_empty(device=like.device)
    model.tie_embeddings()
    state = _our_names(used, model_config)
    for i, (mixer, positions) in enumerate(zip(mixers, each, strict=True)):
        state |= {f"blocks.{i}.mixer.{name}": t for name, t in operator.state(layers[i], positions).items()}
        operator.freeze(mixer, positions)
    if model_config.head == "classes" and not any(name.startswith("head.") for name in state):
        warnings.warn("the checkpoint has no classification head: the model's starts at random", stacklevel=2)
        model.reset_head()
        assert model.head is not None  # for mypy: there is one with head="classes"
        state |= {f"head.{name}": p.detach().clone() for name, p in model.head.named_parameters()}
    model.load_state_dict(state)
    return model


def _original(config: dict[str, Any], head: str | None, layout: str) -> tuple[HyenaDNAConfig, SafariConfig]:
    """The settings of the original code, with the operator's under ``layer``."""
    check_keys(config, _ORIGINAL | _ORIGINAL_WITHOUT_EFFECT | set(_ORIGINAL_FIXED), "a HyenaDNA model")
    for name, allowed in _ORIGINAL_FIXED.items():
        if name in config and config[name] not in allowed:
            raise ValueError(f"{name}={config[name]!r} cannot be loaded, only one of {list(allowed)}")
    if lacking := [name for name in ("d_model", "n_layer", "vocab_size") if name not in config]:
        raise ValueError(f"the config of a HyenaDNA model needs {', '.join(lacking)}")
    for name in ("use_head", "checkpoint_mixer", "checkpoint_mlp"):
        check_flag(name, config.get(name, False))
    if not isinstance(config["layer"], Mapping):
        raise ValueError(f"layer={config['layer']!r} cannot be loaded: it must hold the operator's keywords")
    layer = dict(config["layer"])
    if layer.setdefault("d_model", config["d_model"]) != config["d_model"]:
        raise ValueError(f"d_model={config['d_model']}, but layer has d_model={layer['d_model']}")
    settings = SafariConfig.from_keywords(layer, layout, **({"shift": WINDOW_SHIFT} if layout == "standalone" else {}))
    if head == "auto":
        head = "classes" if config.get("use_head") else None
    return (
        _model_config(
            settings,
            head,
            vocab_size=config["vocab_size"],
            num_layers=config["n_layer"],
            d_inner=config.get("d_inner"),
            dropout=config.get("resid_dropout", 0.0),
            embed_dropout=config.get("embed_dropout", 0.1),
            norm_eps=config.get("layer_norm_epsilon", 1e-5),
            pad_vocab_size_multiple=config.get("pad_vocab_size_multiple", 1),
            residual_in_fp32=config.get("residual_in_fp32", False),
            num_classes=config.get("n_classes", 2),
            gradient_checkpointing=bool(config.get("checkpoint_mixer") or config.get("checkpoint_mlp")),
        ),
        settings,
    )


def _hf(config: dict[str, Any], head: str | None, layout: str) -> tuple[HyenaDNAConfig, SafariConfig]:
    """The settings of the ``-hf`` models, in one level."""
    check_keys(
        config,
        set(_HF_OPERATOR) | set(_HF_DEFAULTS) | _HF_WITHOUT_EFFECT | {"d_inner", "train_freq"},
        "an -hf HyenaDNA model",
    )
    c = {**_HF_DEFAULTS, **config}
    for name in ("d_model", "max_seq_len", "n_layer", "vocab_size", "pad_vocab_size_multiple"):
        check_integer(name, c[name], 1)
    check_flag("tie_word_embeddings", c["tie_word_embeddings"])
    # Other values run into that code's constants: filters for one order only, a padding of 2, LayerNorms of 1e-5.
    for name, value in (("hyena_order", 2), ("short_filter_order", 3), ("layer_norm_epsilon", 1e-5)):
        if c.get(name, value) != value:
            raise ValueError(f"{name}={c[name]!r} cannot be loaded, only {value}: the -hf code works with no other")
    operator = {ours: c[theirs] for theirs, ours in _HF_OPERATOR.items() if theirs in c}
    settings = SafariConfig.from_keywords(
        operator, layout, shift=WINDOW_SHIFT, lr_pos_emb=0.0, train_freq=c.get("train_freq", True)
    )
    architectures = c.get("architectures") or []
    if not isinstance(architectures, list) or not all(isinstance(name, str) for name in architectures):
        raise ValueError(f"architectures={architectures!r} cannot be loaded: it must be a list of names")
    if head == "auto":
        named = " ".join(architectures)
        head = "lm" if "ForCausalLM" in named else "classes" if "ForSequenceClassification" in named else None
    return (
        _model_config(
            settings,
            head,
            vocab_size=c["vocab_size"],
            num_layers=c["n_layer"],
            d_inner=c.get("d_inner"),
            embed_dropout=c["embed_dropout"],
            pad_vocab_size_multiple=c["pad_vocab_size_multiple"],
            residual_in_fp32=True,
            tie_embeddings=c["tie_word_embeddings"],
            num_classes=_num_labels(c),
            pooling="last",
            head_bias=False,
        ),
        settings,
    )


def _num_labels(config: Mapping[str, Any]) -> int:
    """The number of classes: transformers' configs have it, or names for the classes, or neither if there are two."""
    names, number = config.get("id2label"), config.get("num_labels")
    if names is not None and not isinstance(names, Mapping):
        raise ValueError(f"id2label={names!r} cannot be loaded: it must be an object with a name for each class")
    if names is not None and number is not None and len(names) != number:
        raise ValueError(f"num_labels={number}, but id2label names {len(names)} classes")
    return check_integer("num_labels", number, 1) if number is not None else len(names or "") or 2


def _model_config(s: SafariConfig, head: str | None, **others: Any) -> HyenaDNAConfig:
    theirs = {"num_layers": "n_layer", "num_classes": "n_classes"}
    for name in ("vocab_size", "num_layers", "pad_vocab_size_multiple", "num_classes", "d_inner"):
        if others.get(name) is not None:
            check_integer(theirs.get(name, name), others[name], 1)
    for name in ("dropout", "embed_dropout"):
        check_number(name, others.get(name, 0.0), 0.0, 1.0)
    check_number("layer_norm_epsilon", others.get("norm_eps", 1e-5), 0.0)
    for name in ("residual_in_fp32", "tie_embeddings"):
        check_flag(name, others.get(name, True))
    return HyenaDNAConfig(
        l_max=s.l_max,
        d_model=s.d_model,
        order=s.order,
        emb_dim=s.emb_dim,
        filter_order=s.filter_order,
        short_filter_order=s.short_filter_order,
        head=head,
        **others,
    )


def _canonical(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Names without prefixes: ``backbone.…``, ``lm_head.weight``, ``score.weight`` and ``head.output_transform.…``."""
    tensors = rename(tensors, lambda name: re.sub(r"\.(mixer|mlp)\.layer\.", r".\1.", name))
    table = _EMBEDDING.removeprefix("backbone.")
    prefixes = [name.removesuffix(table) for name in tensors if name == table or name.endswith("." + table)]
    if len(prefixes) > 1:
        raise ValueError(f"the state dict holds {len(prefixes)} models, under {', '.join(sorted(prefixes))}; pass one")
    backbone = prefixes[0] if prefixes else "backbone."
    heads = re.compile(r"(?:^|.*\.)(lm_head\.weight|score\.weight|head\.output_transform\.(?:weight|bias))")

    def canonical(name: str) -> str:
        if match := heads.fullmatch(name):
            return match[1]
        return "backbone." + name.removeprefix(backbone) if name.startswith(backbone) else name

    return rename(tensors, canonical)


def _without_output_layer(
    tensors: dict[str, Tensor], config: HyenaDNAConfig
) -> tuple[dict[str, Tensor], Tensor | None]:
    """Splits off an output layer that the model does not have, or has as its embedding."""
    if config.head == "lm" and not config.tie_embeddings:
        return tensors, None
    return {name: t for name, t in tensors.items() if name != "lm_head.weight"}, tensors.get("lm_head.weight")


def _layers(tensors: Mapping[str, Tensor]) -> dict[int, dict[str, Tensor]]:
    """The tensors of each layer's mixer, by the names that they have inside it."""
    layers: dict[int, dict[str, Tensor]] = {}
    for name, t in tensors.items():
        if match := _LAYER.match(name):
            part = layers.setdefault(int(match[1]), {})
            inside = name[match.end() :]
            if inside.startswith("mixer."):
                part[inside.removeprefix("mixer.")] = t
    return layers


def _shapes(c: HyenaDNAConfig, operator: ReleasedOperator, held: Container[str]) -> tuple[Shapes, Shapes]:
    """Names and shapes of a model's weights: those that must be there, and those that can be computed.

    The layer of classes may be missing, but not a part of it if another is among the names ``held``.
    """
    d, inner = c.d_model, c.d_inner or 4 * c.d_model
    required: Shapes = {
        _EMBEDDING: (c.padded_vocab_size, d),
        "backbone.ln_f.weight": (d,),
        "backbone.ln_f.bias": (d,),
    }
    optional: Shapes = {}
    needed, computed = operator.shapes()
    for i in range(c.num_layers):
        block = f"{_LAYERS}{i}."
        required |= {f"{block}norm{n}.{kind}": (d,) for n in (1, 2) for kind in ("weight", "bias")}
        required |= {f"{block}mlp.fc1.weight": (inner, d), f"{block}mlp.fc1.bias": (inner,)}
        required |= {f"{block}mlp.fc2.weight": (d, inner), f"{block}mlp.fc2.bias": (d,)}
        required |= {f"{block}mixer.{name}": shape for name, shape in needed.items()}
        optional |= {f"{block}mixer.{name}": shape for name, shape in computed.items()}
    if c.head == "lm" and not c.tie_embeddings:
        required["lm_head.weight"] = (c.padded_vocab_size, d)
    if c.head == "classes":
        shapes = {"weight": (c.num_classes, d), "bias": (c.num_classes,)}
        layer = {theirs: shapes[ours] for ours, theirs in _class_layer(c).items()}
        (required if any(name in held for name in layer) else optional).update(layer)
    return required, optional


def _class_layer(c: HyenaDNAConfig) -> dict[str, str]:
    """Our names of the layer of ``head="classes"``, and the names in the checkpoint."""
    if not c.head_bias:
        return {"weight": "score.weight"}  # of the -hf models
    return {kind: f"head.output_transform.{kind}" for kind in ("weight", "bias")}


def _our_names(tensors: Mapping[str, Tensor], c: HyenaDNAConfig) -> dict[str, Tensor]:
    """Everything but the mixers, by our names."""
    ours = {"embedding.weight": tensors[_EMBEDDING]}
    ours |= {f"norm.{kind}": tensors[f"backbone.ln_f.{kind}"] for kind in ("weight", "bias")}
    for i in range(c.num_layers):
        ours |= {f"blocks.{i}.{part}": tensors[f"{_LAYERS}{i}.{part}"] for part in _BLOCK_PARTS}
    if c.head == "lm":
        ours["head.weight"] = tensors[_EMBEDDING if c.tie_embeddings else "lm_head.weight"]
    if c.head == "classes":
        ours |= {f"head.{kind}": tensors[name] for kind, name in _class_layer(c).items() if name in tensors}
    return ours
