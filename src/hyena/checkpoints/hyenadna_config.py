"""Settings of HyenaDNA's released models: the original code's, and the ``-hf`` models' for transformers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hyena.checkpoints.checks import check_flag, check_integer, check_keys, check_number
from hyena.checkpoints.safari.config import SafariConfig
from hyena.models.hyenadna import WINDOW_SHIFT, HyenaDNAConfig

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
    # Theirs always are so, and do not say it; a model that was saved here says what it is.
    "residual_in_fp32": True,
    "resid_dropout": 0.0,
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


# The layouts of the released operators that these models were made of; Zoology has none.
_LAYOUTS = ("standalone", "safari")


def is_hf(values: Mapping[str, Any]) -> bool:
    """Whether the settings are an ``-hf`` model's: the original code has the operator's in a level of their own."""
    return "layer" not in values


def read_settings(values: Mapping[str, Any], head: str | None, layout: str) -> tuple[HyenaDNAConfig, SafariConfig]:
    """The settings of a model, and those that all its operators have.

    Args:
        values: of the config.
        head, layout: see :func:`hyena.checkpoints.load_hyenadna`.

    Raises:
        ValueError: keys that are not known, values of another type or out of range, or that the released code cannot
            run.
    """
    if layout not in _LAYOUTS:
        raise ValueError(f"layout must be one of {', '.join(_LAYOUTS)}, got {layout!r}")
    return (_hf if is_hf(values) else _original)(values, head, layout)


def _original(config: Mapping[str, Any], head: str | None, layout: str) -> tuple[HyenaDNAConfig, SafariConfig]:
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


def _hf(config: Mapping[str, Any], head: str | None, layout: str) -> tuple[HyenaDNAConfig, SafariConfig]:
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
        if "ForTokenClassification" in named:
            raise ValueError(
                f"architectures={architectures!r} cannot be loaded: a HyenaDNA here has no classes of tokens; "
                "hyena.integrations.auto has, through AutoModelForTokenClassification"
            )
        head = "lm" if "ForCausalLM" in named else "classes" if "ForSequenceClassification" in named else None
    return (
        _model_config(
            settings,
            head,
            vocab_size=c["vocab_size"],
            num_layers=c["n_layer"],
            d_inner=c.get("d_inner"),
            dropout=c["resid_dropout"],
            embed_dropout=c["embed_dropout"],
            pad_vocab_size_multiple=c["pad_vocab_size_multiple"],
            residual_in_fp32=c["residual_in_fp32"],
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
        filter_width=s.filter_order,
        short_taps=s.short_filter_order,
        head=head,
        **others,
    )
