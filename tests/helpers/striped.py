"""StripedHyena and Evo 2 by definition, from the authors' names and layouts, sharing no code with the library.

Dimensions: B batch, L length, D channels, M heads, d channels of a head, S states, K taps.
"""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "striped"
NAMES = ["evo1_tiny", "evo2_tiny", "evo2_1m_tiny"]

State = dict[str, Tensor]


@dataclasses.dataclass
class Golden:
    """A tiny model that the authors' code was run on: its folder, config, weights and what came out."""

    folder: Path
    config: dict[str, Any]
    state: State
    out: State


def golden(name: str) -> Golden:
    """Reads ``golden/striped/<name>``."""
    folder = GOLDEN / name
    config = json.loads((folder / "config.json").read_text())
    return Golden(folder, config, load_file(folder / "model.safetensors"), load_file(GOLDEN / f"{name}.safetensors"))


def first_generation(**changes: Any) -> dict[str, Any]:
    """A small config of the first generation."""
    config = {
        **{"vocab_size": 19, "hidden_size": 24, "num_filters": 24, "num_layers": 3, "num_attention_heads": 4},
        **{"attn_layer_idxs": [1], "hyena_layer_idxs": [0, 2], "short_filter_length": 3, "short_filter_bias": True},
        **{"state_size": 3, "eps": 1e-5, "tie_embeddings": False, "proj_groups": 2, "max_seqlen": 200},
        **{"use_flash_rmsnorm": True, "qkv_proj_bias": False, "mha_out_proj_bias": False, "inner_mlp_size": 40},
    }
    return {**config, **changes}


def second_generation(**changes: Any) -> dict[str, Any]:
    """A small config of the second generation."""
    config = {
        **{"vocab_size": 19, "hidden_size": 24, "num_filters": 24, "num_layers": 4, "num_attention_heads": 4},
        **{"attn_layer_idxs": [3], "hcs_layer_idxs": [0], "hcm_layer_idxs": [1], "hcl_layer_idxs": [2]},
        **{"hcs_filter_length": 7, "hcm_filter_length": 128, "hcs_filter_groups": 6, "hcm_filter_groups": 6},
        **{"short_filter_length": 3, "short_filter_bias": False, "state_size": 4, "eps": 1e-6},
        **{"tie_embeddings": True, "column_split": True, "column_split_hyena": False, "interleave": True},
        **{"evo2_style_activations": True, "hyena_out_proj_bias": True, "hyena_flip_x1x2": False},
        **{"qkv_proj_bias": False, "mha_out_proj_bias": True, "max_seqlen": 200, "inner_size_multiple_of": 16},
    }
    return {**config, **changes}


def is_first(config: dict[str, Any]) -> bool:
    """Of which generation."""
    return "hyena_layer_idxs" in config


def inner_width(config: dict[str, Any]) -> int:
    """Inner width of the MLPs."""
    if config.get("inner_mlp_size"):
        return config["inner_mlp_size"]
    multiple = config.get("inner_size_multiple_of", 64)
    return multiple * math.ceil(int(2 * config["hidden_size"] * 4 / 3) / multiple)


def shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a model's weights as files have them."""
    d, m, v = config["hidden_size"], config["num_attention_heads"], config["vocab_size"]
    first, inner, size = is_first(config), inner_width(config), config["hidden_size"] // m
    rows = d + 2 * (m // config.get("proj_groups", 1)) * size
    qkv_bias = config.get("qkv_proj_bias", True)
    found: dict[str, tuple[int, ...]] = {"embedding_layer.weight": (v, d)}
    if config.get("final_norm", True):
        found["norm.scale"] = (d,)
    if not config["tie_embeddings"]:
        found["unembed.weight"] = (v, d)
    for i in range(config["num_layers"]):
        at = f"blocks.{i}."
        found |= {f"{at}{norm}.scale": (d,) for norm in ("pre_norm", "post_norm")}
        found |= {f"{at}mlp.l1.weight": (inner, d), f"{at}mlp.l2.weight": (inner, d), f"{at}mlp.l3.weight": (d, inner)}
        if i in config["attn_layer_idxs"]:
            mha = f"{at}inner_mha_cls."
            found |= {f"{mha}Wqkv.weight": (rows, d), f"{mha}out_proj.weight": (d, d)}
            found |= {f"{mha}Wqkv.bias": (rows,)} if qkv_bias else {}
            found |= {f"{mha}out_proj.bias": (d,)} if config.get("mha_out_proj_bias", True) else {}
            found[f"{mha}rotary_emb.inv_freq"] = (size // 2,)
            continue
        found |= {f"{at}projections.weight": (3 * d, d), f"{at}out_filter_dense.weight": (d, d)}
        found |= {f"{at}projections.bias": (3 * d,)} if first or qkv_bias else {}
        found |= {f"{at}out_filter_dense.bias": (d,)} if first or config["hyena_out_proj_bias"] else {}
        found[f"{at}filter.short_filter_weight"] = (3 * d, 1, config["short_filter_length"])
        found |= {f"{at}filter.short_filter_bias": (3 * d,)} if config["short_filter_bias"] else {}
        s = config["state_size"]
        if first:
            found |= {f"{at}filter.{n}": (d, s, 1, 2) for n in ("poles", "residues")}
        elif i in config["hcl_layer_idxs"]:
            found |= {f"{at}filter.log_poles": (d, s, 1), f"{at}filter.residues": (d, s)}
        else:
            kind = "hcm" if i in config["hcm_layer_idxs"] else "hcs"
            found[f"{at}filter.h"] = (config[f"{kind}_filter_groups"], 1, config[f"{kind}_filter_length"])
        if first or i not in config["hcs_layer_idxs"]:
            found[f"{at}filter.D"] = (d,)
    return found


def random_state(config: dict[str, Any], dtype: torch.dtype = torch.float32) -> State:
    """A state dict with random weights, large enough that every one of them counts."""
    state: State = {}
    for name, shape in shapes(config).items():
        t = torch.randn(shape) * shape[-1] ** -0.5
        if name.endswith("scale"):
            t = 1 + 0.3 * torch.randn(shape)
        elif name.endswith("poles") and not name.endswith("log_poles"):
            angle, modulus = 3 * torch.rand(shape[:3]), 0.5 + 0.49 * torch.rand(shape[:3])
            t = torch.view_as_real(torch.polar(modulus, angle))
        elif name.endswith("log_poles"):
            t = -torch.rand(shape).mul(4).sub(3).exp()
        elif name.endswith(("residues", ".h", ".D", "bias", "short_filter_weight")):
            t = 0.5 * torch.randn(shape)
        elif name.endswith("inv_freq"):
            t = frequencies(config)
        state[name] = t.to(torch.float32 if name.endswith(("poles", "residues", "inv_freq")) else dtype)
    return state


def frequencies(config: dict[str, Any]) -> Tensor:
    """Of rotary positions, ``(d/2,)``."""
    size = config["hidden_size"] // config["num_attention_heads"]
    base = config.get("rotary_emb_base", 10_000 if is_first(config) else 1_000_000)
    return torch.tensor([base ** (-2 * i / size) for i in range(size // 2)], dtype=torch.float64)


def logits(state: State, config: dict[str, Any], ids: Tensor) -> Tensor:
    """The model's logits ``(B, L, V)`` in float64, with a matrix for each convolution."""
    w = {name: t.double() for name, t in state.items()}
    x = w["embedding_layer.weight"][ids]
    for i in range(config["num_layers"]):
        at = f"blocks.{i}."
        u = _norm(x, w[f"{at}pre_norm.scale"], config)
        inside = {name.removeprefix(at): t for name, t in w.items() if name.startswith(at)}
        x = x + (_attention if i in config["attn_layer_idxs"] else _hyena)(u, inside, config, i)
        u = _norm(x, w[f"{at}post_norm.scale"], config)
        gate = u @ inside["mlp.l1.weight"].T
        if i == 0 or not config.get("evo2_style_activations", False):
            act = config.get("mlp_activation", "silu" if is_first(config) else "gelu")
            gate = F.silu(gate) if act == "silu" else F.gelu(gate)
        x = x + (gate * (u @ inside["mlp.l2.weight"].T)) @ inside["mlp.l3.weight"].T
    if config.get("final_norm", True):
        x = _norm(x, w["norm.scale"], config)
    return x @ w["embedding_layer.weight" if config["tie_embeddings"] else "unembed.weight"].T


def _norm(x: Tensor, scale: Tensor, config: dict[str, Any]) -> Tensor:
    square = (x * x).mean(-1, keepdim=True)
    if config.get("use_flash_rmsnorm", False):
        return scale * x / (square + config["eps"]).sqrt()
    return scale * x / (square.sqrt() + config["eps"])


def _attention(u: Tensor, w: State, config: dict[str, Any], layer: int) -> Tensor:
    batch, length, d = u.shape
    m = config["num_attention_heads"]
    size, kv = d // m, m // config.get("proj_groups", 1)
    z = u @ w["inner_mha_cls.Wqkv.weight"].T + w.get("inner_mha_cls.Wqkv.bias", 0)
    if not is_first(config) and config["column_split"]:
        q, k, v = z.view(batch, length, m, 3, size).unbind(3)
    else:
        q, k, v = (part.reshape(batch, length, -1, size) for part in z.split([d, kv * size, kv * size], dim=2))
    scaling = config["rotary_emb_scaling_factor"] if config.get("use_interpolated_rotary_pos_emb") else 1
    angle = torch.arange(length, dtype=torch.float64)[:, None] / scaling * frequencies(config)
    turned = torch.polar(torch.ones_like(angle), angle)[:, None]

    def turn(x: Tensor) -> Tensor:
        y = torch.complex(x[..., : size // 2], x[..., size // 2 :]) * turned
        return torch.cat([y.real, y.imag], dim=-1)

    q, k = turn(q), turn(k)
    out = torch.zeros(batch, length, m, size, dtype=torch.float64)
    for head in range(m):
        at = head // (m // kv)
        scores = torch.einsum("btd,bsd->bts", q[:, :, head], k[:, :, at]) * size**-0.5
        scores = scores.masked_fill(torch.ones(length, length, dtype=torch.bool).triu(1), -torch.inf)
        out[:, :, head] = scores.softmax(-1) @ v[:, :, at]
    return out.flatten(2) @ w["inner_mha_cls.out_proj.weight"].T + w.get("inner_mha_cls.out_proj.bias", 0)


def taps(w: State, config: dict[str, Any], layer: int, length: int) -> Tensor:
    """``(D, length)``, lag 0 first, without the weight of the input itself."""
    d, at = config["hidden_size"], torch.arange(length, dtype=torch.float64)
    if is_first(config):
        p, r = (torch.view_as_complex(w[f"filter.{n}"][:, :, 0].double().contiguous()) for n in ("poles", "residues"))
        powers = torch.ones(length, *p.shape, dtype=torch.complex128)
        for t in range(1, length):
            powers[t] = powers[t - 1] * p
        return (powers * r).real.sum(-1).T
    if layer in config["hcl_layer_idxs"]:
        lp, r = w["filter.log_poles"].double()[..., 0], w["filter.residues"].double()
        return (r[..., None] * torch.exp(lp[..., None] * at)).sum(1)
    h = w["filter.h"].double()[:, 0]
    if layer in config["hcs_layer_idxs"]:
        h = h.flip(1)
    h = F.pad(h, (0, max(0, length - h.size(1))))[:, :length]
    return h.repeat_interleave(d // h.size(0), dim=0)


def _hyena(u: Tensor, w: State, config: dict[str, Any], layer: int) -> Tensor:
    batch, length, d = u.shape
    z = u @ w["projections.weight"].T + w.get("projections.bias", 0)
    short, padded = w["filter.short_filter_weight"][:, 0], F.pad(z, (0, 0, 2, 0))
    z = sum(padded[:, j : j + length] * short[:, j] for j in range(3)) + w.get("filter.short_filter_bias", 0)
    if not is_first(config) and config["interleave"]:
        z = torch.cat([z[:, :, part::3] for part in range(3)], dim=2)
    if config.get("column_split_hyena", True):
        z = z.view(batch, length, config["num_attention_heads"], 3, -1).transpose(2, 3).flatten(2)
    x2, x1, v = z.split(d, dim=2)
    if config.get("hyena_flip_x1x2", False):
        x1, x2 = x2, x1
    h, lags = taps(w, config, layer, length), torch.arange(length)[:, None] - torch.arange(length)
    matrix = torch.where(lags >= 0, h[:, lags.clamp_min(0)], 0.0)  # (D, L, L)
    y = torch.einsum("dts,bsd->btd", matrix, x1 * v) + w.get("filter.D", torch.zeros(())) * x1 * v
    return (x2 * y) @ w["out_filter_dense.weight"].T + w.get("out_filter_dense.bias", 0)
