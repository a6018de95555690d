"""The authors' StripedHyena configs: what model they describe, and how its weights lie in files.

Dimensions: D channels, M heads, d channels of a head.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hyena.checkpoints.checks import check_flag, check_integer, check_keys, check_number
from hyena.checkpoints.files import Source, read_config
from hyena.checkpoints.striped.published import PUBLISHED
from hyena.models.striped_hyena import StripedHyenaConfig

# Keys that change what is computed, or how weights lie in files.
_BOTH = {
    *(
        "vocab_size",
        "hidden_size",
        "num_filters",
        "num_layers",
        "num_attention_heads",
        "proj_groups",
        "attn_layer_idxs",
    ),
    *("short_filter_length", "short_filter_bias", "state_size", "hyena_filter_groups", "column_split_hyena"),
    *("eps", "use_flash_rmsnorm", "final_norm", "tie_embeddings", "mlp_activation", "inner_mlp_size"),
    *("inner_size_multiple_of", "model_parallel_size", "qkv_proj_bias", "mha_out_proj_bias", "max_seqlen"),
    *("max_sequence_len", "rotary_emb_base", "use_interpolated_rotary_pos_emb", "rotary_emb_scaling_factor"),
    *("smeared_gqa", "column_split", "long_fir_threshold", "use_fp8_linears"),
}
_FIRST = {"hyena_layer_idxs"}
_SECOND = {
    *("hcs_layer_idxs", "hcm_layer_idxs", "hcl_layer_idxs", "hcs_filter_length", "hcm_filter_length"),
    *("hcs_filter_groups", "hcm_filter_groups", "interleave", "hyena_flip_x1x2"),
    *("evo2_style_activations", "hyena_out_proj_bias", "use_fp8_input_projections"),
}
# What the authors' code has no default for that every version of it shares.
_NEEDED = {
    *("vocab_size", "hidden_size", "num_layers", "num_attention_heads", "attn_layer_idxs", "state_size", "eps"),
    *("tie_embeddings", "short_filter_length", "short_filter_bias"),
}
_NEEDED_SECOND = {
    *("hcs_filter_length", "hcm_filter_length", "hcs_filter_groups", "hcm_filter_groups", "interleave", "column_split"),
    *("column_split_hyena", "qkv_proj_bias", "mha_out_proj_bias", "hyena_out_proj_bias", "evo2_style_activations"),
}
# Keys without an effect on outputs.
_UNUSED = {
    *("model_name", "mlp_init_method", "mlp_output_init_method", "make_vocab_size_divisible_by"),
    *("log_intermediate_values", "split_k0", "rng_fork", "pile_parallel_size", "pipe_parallel_size"),
    *("use_flash_attn", "use_flash_attention_2", "use_flash_depthwise", "use_flashfft", "use_laughing_hyena"),
    *("inference_mode", "max_batch_size", "print_activations", "hcl_filter_groups", "tokenizer_type", "vocab_file"),
    *("prefill_style", "architectures", "auto_map", "model_type", "torch_dtype", "dtype", "transformers_version"),
    *("_name_or_path", "_commit_hash", "_attn_implementation", "use_cache", "bos_token_id", "eos_token_id"),
    *("pad_token_id", "tie_word_embeddings", "is_decoder", "return_dict", "seqlen", "low_mem_mode", "compile"),
    *("hyena_block_dtype", "attn_block_dtype", "mlp_dtype", "depthwise_dtype", "params_dtype", "process_group"),
    *("ground_truth_activations_path", "cgcg_dtype", "cgcg_bwd_autotune", "cgcg_fused_bwd", "padding_idx"),
}


@dataclasses.dataclass(frozen=True)
class Layout:
    """How weights lie in files.

    Args:
        first: of the first generation (StripedHyena-7B, Evo 1), else of the second (Evo 2).
        interleave: rows of the projections are (channel, part).
        column_split: they are (head, part, channel); after ``interleave``.
        flip: the two gates change places.
        column_split_qkv: rows of attention's projection are (head, part, channel).
        fp8: the authors compute the projections in FP8.
    """

    first: bool
    interleave: bool
    column_split: bool
    flip: bool
    column_split_qkv: bool
    fp8: bool


def striped_hyena_config(config: Source, l_max: int | None = None) -> StripedHyenaConfig:
    """The config of a :class:`hyena.models.StripedHyena` that computes what the authors' config describes.

    ``StripedHyena(striped_hyena_config("evo2_7b"), device="meta")`` has the shapes of a published model, without
    memory for its weights.

    Args:
        config: the name of a published model (``stripedhyena-hessian-7b``, ``stripedhyena-nous-7b``,
            ``evo-1-8k-base``, ``evo-1-131k-base``, ``evo2_1b_base``, ``evo2_7b_base``, ``evo2_7b_262k``, ``evo2_7b``,
            ``evo2_20b``, ``evo2_40b_base``, ``evo2_40b``); the authors' settings as a dict; or the path of a ``.json``
            or ``.yml`` file of them (YAML needs the ``pyyaml`` package), or of a folder with a ``config.json``.
        l_max: longest row, in place of ``max_seqlen``.

    Raises:
        ValueError: unknown or missing keys, listed; values that mean another model.
        FileNotFoundError: no such file.
    """
    return read_settings(config, l_max)[0]


def read_settings(config: Source, l_max: int | None = None) -> tuple[StripedHyenaConfig, Layout]:
    """The model that a config describes, and the layout of its weights; see :func:`striped_hyena_config`."""
    values = _values(config)
    first, second = "hyena_layer_idxs" in values, any(f"{kind}_layer_idxs" in values for kind in ("hcs", "hcm", "hcl"))
    if first == second:
        raise ValueError(
            "a config has either hyena_layer_idxs (StripedHyena-7B, Evo 1) or hcs_, hcm_ and hcl_layer_idxs (Evo 2); "
            f"this one has {'both' if first else 'none of them'}"
        )
    check_keys(values, _BOTH | _UNUSED | (_FIRST if first else _SECOND), "StripedHyena" if first else "Evo 2")
    if missing := sorted((_NEEDED if first else _NEEDED | _NEEDED_SECOND) - set(values)):
        raise ValueError(f"the config lacks {', '.join(missing)}")
    _refuse(values)
    layout = Layout(
        first=first,
        interleave=not first and check_flag("interleave", values["interleave"]),
        column_split=check_flag("column_split_hyena", values.get("column_split_hyena", True)),
        flip=check_flag("hyena_flip_x1x2", values.get("hyena_flip_x1x2", False)),
        column_split_qkv=not first and check_flag("column_split", values["column_split"]),
        fp8=check_flag("use_fp8_input_projections", values.get("use_fp8_input_projections", False)),
    )
    return _model(values, first, l_max), layout


def _values(config: Source) -> dict[str, Any]:
    if isinstance(config, Mapping):
        return dict(config)
    if isinstance(config, StripedHyenaConfig):
        raise TypeError(
            "a StripedHyenaConfig does not say how weights lie in files: pass the authors' settings, or a model's name"
        )
    name = str(config)
    if name in PUBLISHED:
        return dict(PUBLISHED[name])
    path = Path(config)
    if path.suffix in (".yml", ".yaml") and path.is_file():
        return _yaml(path)
    try:
        return read_config(config)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{error}; nor is it the name of a published model: {', '.join(PUBLISHED)}") from None


def _yaml(path: Path) -> dict[str, Any]:
    try:
        import yaml
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"reading {path} needs the pyyaml package (pip install pyyaml), or pass the settings as a dict", name="yaml"
        ) from error
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not a config, which is YAML: {error}") from None
    if not isinstance(values, dict):
        raise ValueError(f"{path} holds a {type(values).__name__}, not an object with a model's settings")
    return values


def _refuse(values: Mapping[str, Any]) -> None:
    """Raises for settings that mean a model that is not known."""
    only = {"smeared_gqa": False, "hyena_filter_groups": 1, "num_filters": values["hidden_size"]}
    only |= {"long_fir_threshold": None, "use_fp8_linears": False}  # filters cut off, and all layers in FP8
    for name, value in only.items():
        if values.get(name, value) != value:
            raise ValueError(f"{name}={values[name]!r} cannot be loaded: only {value!r} is known")
    if "hcm_filter_length" in values:
        short, medium = (check_integer(f"{k}_filter_length", values[f"{k}_filter_length"], 1) for k in ("hcs", "hcm"))
        if not short < 128 <= medium:
            raise ValueError(
                f"hcs_filter_length={short} and hcm_filter_length={medium} cannot be loaded: the order of a filter's "
                "taps is known for below 128 of them in hcs layers, and for 128 and more in hcm layers"
            )
        if values["hcs_filter_groups"] != values["hcm_filter_groups"]:
            raise ValueError(
                f"hcs_filter_groups={values['hcs_filter_groups']!r} and hcm_filter_groups="
                f"{values['hcm_filter_groups']!r} differ: only equal ones are known"
            )


def _model(values: Mapping[str, Any], first: bool, l_max: int | None) -> StripedHyenaConfig:
    def integer(name: str, *default: int) -> int:
        return check_integer(name, values.get(name, *default), 1)

    def flag(name: str, *default: bool) -> bool:
        return check_flag(name, values.get(name, *default))

    heads, groups = integer("num_attention_heads"), integer("proj_groups", 1)
    if heads % groups != 0:
        raise ValueError(f"num_attention_heads={heads} is not a multiple of proj_groups={groups}")
    if not first and groups != 1:
        raise ValueError(f"proj_groups={groups} cannot be loaded: only 1 is known of Evo 2")
    scaling = 1.0
    if flag("use_interpolated_rotary_pos_emb", False):
        scaling = float(check_number("rotary_emb_scaling_factor", values.get("rotary_emb_scaling_factor", 1.0)))
    inner = values.get("inner_mlp_size")
    activation = values.get("mlp_activation", "silu" if first else "gelu")
    if activation not in ("silu", "gelu"):
        raise ValueError(f"mlp_activation={activation!r} cannot be loaded: only 'silu' and 'gelu' are known")
    bias = flag("qkv_proj_bias", True)
    return StripedHyenaConfig(
        vocab_size=integer("vocab_size"),
        l_max=_longest(values, l_max, scaling),
        d_model=integer("hidden_size"),
        layers=_layers(values, first),
        num_heads=heads,
        num_kv_heads=heads // groups,
        d_inner=None if inner is None else check_integer("inner_mlp_size", inner, 1),
        inner_multiple=integer("inner_size_multiple_of", 64) * integer("model_parallel_size", 1),
        activation=activation,
        gated_layers=1 if not first and flag("evo2_style_activations") else None,
        se_taps=7 if first else integer("hcs_filter_length"),
        mr_taps=128 if first else integer("hcm_filter_length"),
        groups=None if first else integer("hcm_filter_groups"),
        modes=integer("state_size"),
        short_taps=integer("short_filter_length"),
        in_bias=True if first else bias,
        short_bias=flag("short_filter_bias"),
        out_bias=True if first else flag("hyena_out_proj_bias"),
        qkv_bias=bias,
        attention_out_bias=flag("mha_out_proj_bias", True),
        rotary_base=float(check_number("rotary_emb_base", values.get("rotary_emb_base", 1e4 if first else 1e6))),
        rotary_scaling=scaling,
        norm_eps=float(check_number("eps", values["eps"], 0)),
        norm_eps_inside=flag("use_flash_rmsnorm", False),
        final_norm=flag("final_norm", True),
        tie_embeddings=flag("tie_embeddings"),
    )


def _longest(values: Mapping[str, Any], l_max: int | None, scaling: float) -> int:
    if l_max is not None:
        return check_integer("l_max", l_max, 1)
    if "max_seqlen" in values:
        return check_integer("max_seqlen", values["max_seqlen"], 1)
    if "max_sequence_len" in values:  # of the training, before positions were interpolated
        return round(check_integer("max_sequence_len", values["max_sequence_len"], 1) * scaling)
    raise ValueError("the config has no max_seqlen: pass l_max, the longest row")


def _layers(values: Mapping[str, Any], first: bool) -> tuple[str, ...]:
    """The kind of each layer."""
    count = check_integer("num_layers", values["num_layers"], 1)
    kinds = {"hyena": "IIR"} if first else {"hcs": "SE", "hcm": "MR", "hcl": "LI"}
    found: dict[int, str] = {}
    for key, kind in {"attn": "attention", **kinds}.items():
        name = f"{key}_layer_idxs"
        given = values.get(name, [])
        if not isinstance(given, (list, tuple)):
            raise ValueError(f"{name}={given!r} cannot be loaded: it must be a list of layers")
        for entry in given:
            index = check_integer(name, entry, 0)
            if index >= count and first:  # StripedHyena-7B's config lists one layer too many
                continue
            if index >= count or index in found:
                why = f"there are num_layers={count}" if index >= count else f"it is {found[index]} already"
                raise ValueError(f"{name} names layer {index}, but {why}")
            found[index] = kind
    if missing := [i for i in range(count) if i not in found]:
        raise ValueError(f"the config does not say what layers {missing} of num_layers={count} are")
    return tuple(found[i] for i in range(count))
