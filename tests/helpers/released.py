"""The released Hyena operators by definition, from their own state dicts, sharing no code with the library.

Dimensions: B batch, L length, D channels, N order, F = N - 1 filters, E features, W width of the filter's FFN.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
OPERATORS = ["safari_order2", "safari_order3", "safari_short_input", "safari_blocks2", "standalone_order3"]


# As in the folders that HyenaDNA is published in, for the golden weights.
HF_CONFIG: dict[str, Any] = {
    "_name_or_path": "hyenadna",
    "architectures": ["HyenaDNAForCausalLM"],
    "auto_map": {},
    "model_type": "hyenadna",
    "d_model": 32,
    "n_layer": 2,
    "d_inner": 128,
    "vocab_size": 12,
    "max_seq_len": 66,
    "emb_dim": 5,
    "filter_order": 16,
    "activation_freq": 10,
    "num_inner_mlps": 2,
    "hyena_order": 2,
    "hyena_dropout": 0.0,
    "hyena_filter_dropout": 0.0,
    "short_filter_order": 3,
    "embed_dropout": 0.1,
    "layer_norm_epsilon": 1e-5,
    "initializer_range": 0.02,
    "pad_token_id": 4,
    "pad_vocab_size_multiple": 8,
    "tie_word_embeddings": False,
    "torch_dtype": "float32",
    "train_freq": True,
    "transformers_version": "4.35.2",
    "use_bias": True,
}


@dataclass
class Golden:
    """One file: its config, and its tensors by what they are."""

    config: dict[str, Any]
    state: dict[str, Tensor]
    grads: dict[str, Tensor]
    tensors: dict[str, Tensor]


def golden(name: str) -> Golden:
    """Reads ``golden/<name>.safetensors``."""
    with safe_open(GOLDEN / f"{name}.safetensors", "pt") as f:
        tensors = {key: f.get_tensor(key) for key in f.keys()}  # noqa: SIM118 (a file, not a dict)
        config = json.loads(f.metadata()["config"])
    return Golden(
        config,
        {key.removeprefix("state."): t for key, t in tensors.items() if key.startswith("state.")},
        {key.removeprefix("grad."): t for key, t in tensors.items() if key.startswith("grad.")},
        tensors,
    )


def layout_of(name: str) -> str:
    """The layout of a golden file's operator."""
    return name.split("_")[0]


def deviation(got: Tensor, want: Tensor) -> float:
    """The largest deviation as a share of the largest entry."""
    assert got.shape == want.shape, (got.shape, want.shape)
    return ((got.double() - want.double()).abs().max() / want.double().abs().max()).item()


def random_state(
    config: dict[str, Any], layout: str = "safari", dtype: torch.dtype = torch.float64
) -> dict[str, Tensor]:
    """A state dict as the released operator of ``config`` would have it, with random weights."""
    d, n, taps = config["d_model"], config.get("order", 2), config.get("short_filter_order", 3)
    e, w, inner = config["emb_dim"], config["filter_order"], config.get("num_inner_mlps", 2)
    rows, l_max = (n - 1) * d, config["l_max"]
    state = {
        "in_proj.weight": torch.randn((n + 1) * d, d) / d**0.5,
        "in_proj.bias": torch.randn((n + 1) * d),
        "out_proj.weight": torch.randn(d, d) / d**0.5,
        "out_proj.bias": torch.randn(d),
        "short_filter.weight": torch.randn((n + 1) * d, 1, taps),
        "short_filter.bias": torch.randn((n + 1) * d),
        "filter_fn.bias": torch.randn(rows),
        "filter_fn.pos_emb.t": torch.linspace(0, 1, l_max)[None, :, None],
        "filter_fn.pos_emb.z": computed_positions(l_max, e)[None],
        "filter_fn.modulation.deltas": -torch.linspace(3.0701, 15.3506, rows)[None, None],
        f"filter_fn.implicit_filter.{2 * inner + 2}.weight": torch.randn(rows, w) / w**0.5,
    }
    freq = 1 + torch.rand(1, w)
    for i in range(inner + 1):
        width = e if i == 0 else w
        state[f"filter_fn.implicit_filter.{2 * i}.weight"] = torch.randn(w, width) / width**0.5
        state[f"filter_fn.implicit_filter.{2 * i}.bias"] = torch.randn(w)
        state[f"filter_fn.implicit_filter.{2 * i + 1}.freq"] = freq
    if config.get("post_order_ffn"):
        state["ord_proj_w"] = torch.randn(n, 1, 1)
    return {name: t.to(dtype) for name, t in state.items()}


def computed_positions(l_max: int, features: int) -> Tensor:
    """The released positional encoding before it is trained: (l_max, E), in float64."""
    t = torch.arange(l_max, dtype=torch.float64)
    bands = (features - 1) // 2
    phase = 2 * torch.pi * t[:, None] / l_max * torch.linspace(1e-4, bands - 1, bands, dtype=torch.float64)
    return torch.cat([t[:, None] / max(l_max - 1, 1), torch.cos(phase), -torch.sin(phase)], dim=1)


def taps(state: dict[str, Tensor], config: dict[str, Any], length: int, layout: str) -> Tensor:
    """The released filters, first applied first: (F, length, D)."""
    x = state["filter_fn.pos_emb.z"][0, :length]
    inner = config.get("num_inner_mlps", 2)
    for i in range(inner + 1):
        layer = f"filter_fn.implicit_filter.{2 * i}."
        x = x @ state[layer + "weight"].T + state[layer + "bias"]
        x = torch.sin(state["filter_fn.implicit_filter.1.freq"] * x)
    h = x @ state[f"filter_fn.implicit_filter.{2 * inner + 2}.weight"].T
    if config.get("modulate", True):
        decay = state["filter_fn.pos_emb.t"][0, :length] * state["filter_fn.modulation.deltas"][0].abs()
        h = h * (torch.exp(-decay) + config.get("shift", 0.0))
    if config.get("normalized"):
        h = h / h.abs().sum(1, keepdim=True)
    return torch.stack(_filters(h.T, config, layout)).transpose(1, 2)


def _filters(rows: Tensor, config: dict[str, Any], layout: str) -> list[Tensor]:
    """What belongs to each filter out of one row for each filter and channel."""
    count, d = config.get("order", 2) - 1, config["d_model"]
    return [rows[i::count] if layout != "standalone" else rows[i * d : (i + 1) * d] for i in range(count)]


def operator(state: dict[str, Tensor], config: dict[str, Any], u: Tensor, layout: str = "safari") -> Tensor:
    """The released operator's output, with a matrix for each convolution: (B, L, D) -> (B, L, D)."""
    n, d, blocks = config.get("order", 2), config["d_model"], config.get("num_blocks", 1)
    batch, length, _ = u.shape
    z = u @ state["in_proj.weight"].T + state["in_proj.bias"]
    short, zc = state["short_filter.weight"][:, 0], state["short_filter.bias"].expand_as(z).clone()
    for lag in range(min(short.size(1), length)):
        zc[:, lag:] = zc[:, lag:] + z[:, : length - lag] * short[:, short.size(1) - 1 - lag]
    *x, v = (part.reshape(batch, blocks, length // blocks, d) for part in zc.split(d, dim=2))
    h = taps(state, config, length, layout)
    bias = _filters(state["filter_fn.bias"], config, layout)
    size = length // blocks
    at = torch.arange(size)
    for i in range(n - 1):
        # The gate before the convolution is the last of safari's projections, and the first of Zoology's two.
        v = v * x[i if layout == "zoology" else n - 1 - i]
        if blocks == 1:
            lags = at[:, None] - at
            matrix = torch.where((lags >= 0)[..., None], h[i][lags.clamp_min(0)], 0.0)
        else:  # a transform of twice the block's length, with as many taps: what is negative wraps around
            matrix = h[i][(at[:, None] - at) % (2 * size)]
        skip = bias[i] if config.get("bias", True) else 0 * bias[i]
        v = torch.einsum("tsd,bksd->bktd", matrix, v) + skip * v
        if config.get("post_order_ffn"):
            v = v * state["ord_proj_w"][i, 0, 0]
    y = (v * x[1 if layout == "zoology" else 0]).reshape(batch, length, d)
    if config.get("activation", "id") != "id":
        y = {"gelu": nn.functional.gelu, "silu": nn.functional.silu}[config["activation"]](y)
    return y @ state["out_proj.weight"].T + state["out_proj.bias"]


def by_released_name(grads: dict[str, Tensor], order: int, d_model: int, layout: str) -> dict[str, Tensor]:
    """Gradients of our operator's parameters by the released names, in the released shapes."""
    count = order - 1

    def rows(x: Tensor) -> Tensor:
        parts = x.unflatten(0, (count, d_model))
        return parts.transpose(0, 1).flatten(0, 1) if layout == "safari" else parts.flatten(0, 1)

    named: dict[str, Tensor] = {}
    hidden = sum(name.endswith(".weight") and ".hidden." in name for name in grads)
    for name, g in grads.items():
        short = name.removeprefix("conv.").replace("filter.inner.", "filter.")
        if short.startswith("filter.ffn.hidden."):
            _, _, _, i, kind = short.split(".")
            named[f"filter_fn.implicit_filter.{2 * int(i)}.{kind}"] = g
        elif short == "filter.ffn.out.weight":
            named[f"filter_fn.implicit_filter.{2 * hidden}.weight"] = rows(g)
        elif short == "filter.ffn.freq":
            named["filter_fn.implicit_filter.1.freq"] = g[None]
        elif short == "filter.encoding.table":
            named["filter_fn.pos_emb.z"] = g[None]
        elif short == "filter.window.deltas":
            named["filter_fn.modulation.deltas"] = rows(g)[None, None]
        elif short == "bias":
            named["filter_fn.bias"] = rows(g.flatten())
        elif short == "short.weight":
            named["short_filter.weight"] = g[:, None]
        elif short == "short.bias":
            named["short_filter.bias"] = g
        elif short == "head_mixing":  # the last matrix is never used
            named["ord_proj_w"] = torch.cat([g, torch.zeros_like(g[:1])])
        else:
            named[short] = g
    return named
