"""Loading M2-BERT's released models, and single mixers of theirs."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from hyena.checkpoints.checks import check_flag, check_integer, check_keys, check_names, check_number, check_values
from hyena.checkpoints.files import Source, config_beside, read_config, read_weights, rename
from hyena.checkpoints.safari import StoredEncoding
from hyena.filters import PairedFilter
from hyena.mixers import MonarchMixer
from hyena.models.m2_bert import M2Bert, M2BertConfig

# Settings that change what is computed into something that M2Bert does not do, with the only value that is loaded.
_ONLY: dict[str, Any] = {
    "monarch_mixer_sequence_mixing": True,
    "use_glu_mlp": True,
    "use_monarch_mlp": True,
    "bidirectional": True,
    "use_positional_encodings": True,
    "hyena_training_additions": False,
    "pool_all": False,
    "hidden_act": "gelu",
}


Names = dict[str, tuple[str | None, tuple[int, ...]]]


def load_m2_bert(state_dict_or_path: Source, config: Source | None = None) -> M2Bert:
    """A :class:`hyena.models.M2Bert` with the weights and outputs of a released M2-BERT.

    Takes what the code of HazyResearch/m2 (Apache-2.0) saves of ``BertForMaskedLM``. It passes its ``attention_mask``
    to nothing: leave ``mask`` out for its outputs.

    Args:
        state_dict_or_path: as for :func:`load_hyenadna`.
        config: the settings of its ``BertConfig`` as a dict, or the path of a ``config.json``; found beside the weights
            if missing.

    Returns:
        The model, in the dtype and on the device of its weights, in training mode.

    Raises:
        ValueError: keys that fit nowhere, missing keys, other shapes, all listed; settings that mean another model;
            weights that are not finite floating-point numbers of one dtype.
        FileNotFoundError: no such file.
    """
    values = read_config(config_beside(state_dict_or_path) if config is None else config)
    c = _settings(values)
    tensors = rename(read_weights(state_dict_or_path), lambda name: re.sub(r"^model\.", "", name))
    tensors.pop("bert.embeddings.position_ids", None)
    tied = "cls.predictions.decoder.weight"
    names = _names(c)
    check_names(tensors, {name: shape for name, (_, shape) in names.items()}, {tied: (c.vocab_size, c.d_model)})
    dtype = check_values(tensors)
    table = tensors["bert.embeddings.word_embeddings.weight"]
    if tied in tensors and not torch.equal(tensors[tied], table):
        raise ValueError(f"{tied} differs from the embedding that this model ties it to")
    mixers = [_empty_mixer(c, dtype) for _ in range(c.num_layers)]
    model = M2Bert(c, mixers, dtype=dtype, device=table.device)
    _load(model, names, tensors)
    return model


def load_m2_mixer(state_dict: Mapping[str, Tensor], config: Mapping[str, Any]) -> MonarchMixer:
    """A :class:`hyena.mixers.MonarchMixer` with the weights of the released ``MonarchMixerSequenceMixing``.

    Args:
        state_dict: its weights.
        config: its keywords.

    Raises:
        ValueError: as :func:`load_m2_bert`.
    """
    c, causal = _mixer_settings(config)
    names, tensors = _mixer_names(c, causal), dict(state_dict)
    check_names(tensors, {name: shape for name, (_, shape) in names.items()}, {})
    mixer = _empty_mixer(c, check_values(tensors), causal)
    _load(mixer, names, tensors)
    return mixer


def mixer_names(config: Mapping[str, Any]) -> Names:
    """Names of the weights of a released mixer, with ours (None for a copy of another) and the released shapes."""
    return _mixer_names(*_mixer_settings(config))


def _mixer_settings(config: Mapping[str, Any]) -> tuple[M2BertConfig, bool]:
    """What the mixer of a layer has of a model's settings, and whether it is causal."""
    known = {"d_model", "l_max", "bidirectional", "residual_long_conv"}
    filters = {"hyena_emb_dim", "hyena_w", "hyena_w_mod", "hyena_filter_order"}
    check_keys(config, known | filters, "MonarchMixerSequenceMixing")
    c = M2BertConfig(
        d_model=check_integer("d_model", config.get("d_model"), 1),
        l_max=check_integer("l_max", config.get("l_max"), 1),
        residual=check_flag("residual_long_conv", config.get("residual_long_conv", False)),
        **_filter_settings(config),
    )
    return c, not check_flag("bidirectional", config.get("bidirectional", True))


def _filter_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    if config.get("hyena_w_mod", 1) != 1:
        raise ValueError(f"hyena_w_mod={config['hyena_w_mod']!r} cannot be loaded: only 1 is known")
    return {
        "emb_dim": check_integer("hyena_emb_dim", config.get("hyena_emb_dim", 5), 3),
        "width": check_integer("hyena_filter_order", config.get("hyena_filter_order", 128), 1),
        "freq": float(check_number("hyena_w", config.get("hyena_w", 10))),
    }


def _settings(config: Mapping[str, Any]) -> M2BertConfig:
    for name, value in _ONLY.items():
        if name in config and config[name] != value:
            raise ValueError(f"{name}={config[name]!r} makes another model than M2Bert, which has {value!r}")
    l_max = check_integer("long_conv_l_max", config.get("long_conv_l_max", config.get("max_position_embeddings")), 1)
    places = check_integer("max_position_embeddings", config.get("max_position_embeddings", l_max), 1)
    if places != l_max:
        raise ValueError(f"max_position_embeddings={places} and long_conv_l_max={l_max} differ: not known")
    return M2BertConfig(
        vocab_size=check_integer("vocab_size", config.get("vocab_size", 30522), 1),
        l_max=l_max,
        d_model=check_integer("hidden_size", config.get("hidden_size", 768), 1),
        num_layers=check_integer("num_hidden_layers", config.get("num_hidden_layers", 12), 1),
        d_inner=check_integer("intermediate_size", config.get("intermediate_size", 3072), 1),
        num_blocks=check_integer("monarch_mlp_nblocks", config.get("monarch_mlp_nblocks", 4), 1),
        residual=check_flag("residual_long_conv", config.get("residual_long_conv", False)),
        token_types=check_integer("type_vocab_size", config.get("type_vocab_size", 2), 1),
        dropout=float(check_number("hidden_dropout_prob", config.get("hidden_dropout_prob", 0.1), 0, 1)),
        norm_eps=float(check_number("layer_norm_eps", config.get("layer_norm_eps", 1e-12), 0)),
        **_filter_settings(config),
    )


def _empty_mixer(c: M2BertConfig, dtype: torch.dtype, causal: bool = False) -> MonarchMixer:
    def filter(channels: int, l_max: int, num_filters: int = 1, **more: Any) -> PairedFilter:
        encoding = StoredEncoding(c.emb_dim, l_max, dtype=PairedFilter.weight_dtype(more["dtype"]))
        sizes: dict[str, Any] = {"emb_dim": c.emb_dim, "width": c.width, "freq": c.freq}
        return PairedFilter(channels, l_max, num_filters, encoding=encoding, **sizes, **more)

    return MonarchMixer(c.d_model, c.l_max, filter=filter, residual=c.residual, causal=causal, dtype=dtype)


def _names(c: M2BertConfig) -> Names:
    """Released names, with ours (None for a copy of another) and the released shapes."""
    d, n = c.d_model, c.num_blocks
    head, bert = "cls.predictions.", "bert.embeddings."
    names: Names = {
        f"{bert}word_embeddings.weight": ("embedding.weight", (c.vocab_size, d)),
        f"{bert}position_embeddings.weight": ("places.weight", (c.l_max, d)),
        f"{bert}token_type_embeddings.weight": ("kinds.weight", (c.token_types, d)),
        f"{bert}LayerNorm.weight": ("norm.weight", (d,)),
        f"{bert}LayerNorm.bias": ("norm.bias", (d,)),
        f"{head}transform.dense.weight": ("dense.weight", (d, d)),
        f"{head}transform.dense.bias": ("dense.bias", (d,)),
        f"{head}transform.LayerNorm.weight": ("head_norm.weight", (d,)),
        f"{head}transform.LayerNorm.bias": ("head_norm.bias", (d,)),
        f"{head}decoder.bias": ("head_bias", (c.vocab_size,)),
    }
    for i in range(c.num_layers):
        layer = f"bert.encoder.layer.{i}."
        names |= {
            f"{layer}attention.{name}": (None if ours is None else f"mixers.{i}.{ours}", shape)
            for name, (ours, shape) in _mixer_names(c, False).items()
        }
        names |= {
            f"{layer}mlp.gated_layers.weight": (f"mlps.{i}.fc1.weight", (n, 2 * c.d_inner // n, d // n)),
            f"{layer}mlp.wo.weight": (f"mlps.{i}.fc2.weight", (n, d // n, c.d_inner // n)),
            f"{layer}mlp.wo.bias": (f"mlps.{i}.fc2.bias", (d,)),
            f"{layer}mlp.layernorm.weight": (f"mlps.{i}.norm.weight", (d,)),
            f"{layer}mlp.layernorm.bias": (f"mlps.{i}.norm.bias", (d,)),
        }
    return names


def _mixer_names(c: M2BertConfig, causal: bool) -> Names:
    d = c.d_model
    names: Names = {
        "in_linear.weight": ("in_proj.weight", (3 * d, d)),
        "in_linear.bias": ("in_proj.bias", (3 * d,)),
        "short_filter.weight": ("short.weight", (3 * d, 1, 3)),
        "short_filter.bias": ("short.bias", (3 * d,)),
        "out_linear.weight": ("out_proj.weight", (d, d)),
        "out_linear.bias": ("out_proj.bias", (d,)),
    }
    for theirs, ours in {"filter_fn": "conv", "filter_fn2": "residual"}.items():
        if ours == "conv" or c.residual:
            names |= {
                f"{theirs}.{name}": (None if o is None else f"{ours}.{o}", s) for name, (o, s) in _filter(c, causal)
            }
    return names


def _filter(c: M2BertConfig, causal: bool) -> list[tuple[str, tuple[str | None, tuple[int, ...]]]]:
    """Of one long convolution: linear layers have even numbers, the sines between them one frequency."""
    d, w = c.d_model, c.width
    found: list[tuple[str, tuple[str | None, tuple[int, ...]]]] = [
        ("bias", ("bias", (d,))),
        ("pos_emb.z", ("filter.encoding.table", (1, c.l_max, c.emb_dim))),
        ("pos_emb.t", ("filter.encoding.time", (1, c.l_max, 1))),
        ("modulation.deltas", ("filter.window.deltas", (1, 1, d))),
    ]
    for theirs, ours in [("implicit_filter", "ffn")] + ([] if causal else [("implicit_filter_rev", "behind")]):
        for i in range(3):
            into = c.emb_dim if i == 0 else w
            found.append((f"{theirs}.{2 * i}.weight", (f"filter.{ours}.hidden.{i}.weight", (w, into))))
            found.append((f"{theirs}.{2 * i}.bias", (f"filter.{ours}.hidden.{i}.bias", (w,))))
            first = theirs == "implicit_filter" and i == 0
            found.append((f"{theirs}.{2 * i + 1}.freq", ("filter.ffn.freq" if first else None, (1, w))))
        found.append((f"{theirs}.6.weight", (f"filter.{ours}.out.weight", (d, w))))
    return found


def _check_shared(name: str, tensors: Mapping[str, Tensor]) -> None:
    first = re.sub(r"implicit_filter(_rev)?\.\d\.freq", "implicit_filter.1.freq", name)
    if not torch.equal(tensors[name], tensors[first]):
        raise ValueError(
            f"{name} differs from {first}: the released code has one frequency for all of a filter's sines"
        )


def _load(module: torch.nn.Module, names: Names, tensors: Mapping[str, Tensor]) -> None:
    own, state = module.state_dict(), {}
    for name, (ours, _) in names.items():
        if ours is None:
            _check_shared(name, tensors)
        else:
            state[ours] = tensors[name].reshape(own[ours].shape)
    module.load_state_dict(state)
