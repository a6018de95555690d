"""Settings of the published StripedHyena models, by the keys of the authors' configs."""

from __future__ import annotations

from typing import Any

# Layers of Evo 2 that are attention; the others are short, medium and long filters in turn.
_EVO2_ATTENTION = (3, 10, 17, 24, 31, 35, 42, 49)

_FIRST = {
    "num_layers": 32,
    "hidden_size": 4096,
    "num_filters": 4096,
    "num_attention_heads": 32,
    "short_filter_length": 3,
    "short_filter_bias": True,
    "hyena_filter_groups": 1,
    "column_split_hyena": True,
    "final_norm": True,
}
_SECOND = {
    "vocab_size": 512,
    "state_size": 16,
    "short_filter_length": 3,
    "short_filter_bias": False,
    "hcm_filter_length": 128,
    "hcs_filter_length": 7,
    "hyena_filter_groups": 1,
    "proj_groups": 1,
    "eps": 1e-6,
    "inner_size_multiple_of": 16,
    "mlp_activation": "gelu",
    "evo2_style_activations": True,
    "tie_embeddings": True,
    "final_norm": True,
    "use_flash_rmsnorm": False,
    "qkv_proj_bias": False,
    "mha_out_proj_bias": True,
    "hyena_out_proj_bias": True,
    "hyena_flip_x1x2": False,
    "column_split": True,
    "column_split_hyena": False,
    "interleave": True,
}


def _striped_hyena_7b() -> dict[str, Any]:
    return {
        **_FIRST,
        "vocab_size": 32000,
        "attn_layer_idxs": list(range(1, 32, 2)),
        "hyena_layer_idxs": list(range(0, 32, 2)),
        "state_size": 2,
        "proj_groups": 4,
        "inner_mlp_size": 14336,
        "eps": 1e-5,
        "use_flash_rmsnorm": True,
        "rotary_emb_base": 500000,
        "qkv_proj_bias": False,
        "mha_out_proj_bias": False,
        "tie_embeddings": False,
        "max_seqlen": 32768,
    }


def _evo1(max_seqlen: int, scaling: int | None) -> dict[str, Any]:
    attention = [8, 16, 24]
    return {
        **_FIRST,
        "vocab_size": 512,
        "attn_layer_idxs": attention,
        "hyena_layer_idxs": [i for i in range(32) if i not in attention],
        "state_size": 8,
        "proj_groups": 1,
        "inner_size_multiple_of": 16,
        "mlp_activation": "gelu",
        "eps": 1e-6,
        "use_flash_rmsnorm": False,
        "qkv_proj_bias": True,
        "mha_out_proj_bias": True,
        "tie_embeddings": True,
        "max_seqlen": max_seqlen,
        **_interpolated(scaling),
    }


def _evo2(
    width: int, heads: int, layers: int, groups: int, inner: int, base: int, max_seqlen: int, scaling: int | None
) -> dict[str, Any]:
    attention = [i for i in _EVO2_ATTENTION if i < layers]
    others = [i for i in range(layers) if i not in attention]
    return {
        **_SECOND,
        "hidden_size": width,
        "num_filters": width,
        "num_attention_heads": heads,
        "num_layers": layers,
        "attn_layer_idxs": attention,
        "hcs_layer_idxs": others[0::3],
        "hcm_layer_idxs": others[1::3],
        "hcl_layer_idxs": others[2::3],
        "hcm_filter_groups": groups,
        "hcs_filter_groups": groups,
        "hcl_filter_groups": width,
        "inner_mlp_size": inner,
        "rotary_emb_base": base,
        "use_fp8_input_projections": True,
        "max_seqlen": max_seqlen,
        **_interpolated(scaling),
    }


def _interpolated(scaling: int | None) -> dict[str, Any]:
    if scaling is None:
        return {}
    return {"use_interpolated_rotary_pos_emb": True, "rotary_emb_scaling_factor": scaling}


_1M = 1 << 20

PUBLISHED: dict[str, dict[str, Any]] = {
    "stripedhyena-hessian-7b": _striped_hyena_7b(),
    "stripedhyena-nous-7b": _striped_hyena_7b(),
    "evo-1-8k-base": _evo1(8192, None),
    "evo-1-131k-base": _evo1(131072, 16),
    "evo2_1b_base": _evo2(1920, 15, 25, 128, 5120, 10_000, 8192, None),
    "evo2_7b_base": _evo2(4096, 32, 32, 256, 11008, 10_000, 8192, None),
    "evo2_7b_262k": _evo2(4096, 32, 32, 256, 11008, 10_000, 262144, 32),
    "evo2_7b": _evo2(4096, 32, 32, 256, 11264, 10_000, _1M, 128),
    "evo2_20b": _evo2(8192, 64, 24, 512, 22528, 1_000_000, _1M, 128),
    "evo2_40b_base": _evo2(8192, 64, 50, 512, 21888, 1_000_000, 8192, None),
    "evo2_40b": _evo2(8192, 64, 50, 512, 22528, 1_000_000, _1M, 128),
}
"""Model name -> settings."""
