"""One released Hyena operator, from its state dict.

Dimensions: D channels, N order, F = N - 1 long filters, W width of the filter's FFN, E features of its encoding.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from hyena.checkpoints.files import Source, check_names, read_config, read_weights, rename
from hyena.checkpoints.released import NoWindow, ReleasedFilter, StoredEncoding
from hyena.checkpoints.settings import Settings, settings_from
from hyena.filters import ExponentialWindow, HyenaFilter, PositionalEncoding, SineFFN
from hyena.mixers.hyena import HyenaOperator


def operator_from_safari(
    state_dict: Source, config: Source, layout: str = "safari", *, learned_encoding: bool | None = None
) -> HyenaOperator:
    """A :class:`hyena.HyenaOperator` with the weights, outputs and gradients of a released one.

    With ``num_blocks > 1`` the released operators see the later positions of a block (their transform wraps around); so
    does this one, with a two-sided :class:`hyena.checkpoints.released.ReleasedFilter`.

    The released operators (HazyResearch/safari, Apache-2.0) store trained positions, which tie a filter to one
    ``l_max``, wherever their ``lr_pos_emb`` is not 0, and it is 1e-5 unless the config says otherwise.

    Args:
        state_dict: the operator's state dict, a checkpoint that holds one, or the path of either (``.safetensors``, or
            what ``torch.load`` reads with ``weights_only``). Names may have a prefix: ``model.layers.0.mixer.``.
        config: keywords of the released ``HyenaOperator``, or the path of a JSON file with them.
        layout: ``"safari"`` for ``src/models/sequence/hyena.py``, ``"standalone"`` for ``standalone_hyena.py``: they
            lay filters out differently from order 3 on.
        learned_encoding: True keeps the checkpoint's table of positions as a parameter; False computes the positions
            instead, and raises if the table has been trained away from them. By default the table is kept if the
            released code trains it (``lr_pos_emb`` is not 0), or if it is not what would be computed.

    Returns:
        The operator, in the dtype and on the device of its weights, in training mode.

    Raises:
        ValueError: keys of the state dict or of the config that fit nowhere, missing keys, other shapes, all listed;
            a table of positions for another ``l_max``; settings that the released code cannot run either.
    """
    settings = settings_from(read_config(config), layout)
    tensors = _without_prefix(read_weights(state_dict))
    settings = with_positions(settings, tensors, learned_encoding)
    check_names(tensors, *expected(settings))
    return build(settings, tensors, layout)


def _without_prefix(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The names that follow whatever stands before the one ``in_proj.weight``."""
    last = "in_proj.weight"
    prefixes = sorted(name.removesuffix(last) for name in tensors if name == last or name.endswith("." + last))
    if len(prefixes) > 1:
        raise ValueError(
            f"the state dict holds {len(prefixes)} operators ({', '.join(p.rstrip('.') for p in prefixes)}): pass the "
            "entries of one, or load the whole model with hyena.checkpoints.hyenadna"
        )
    prefix = prefixes[0] if prefixes else ""
    return rename(tensors, lambda name: name.removeprefix(prefix))


def expected(s: Settings) -> tuple[dict[str, tuple[int, ...]], dict[str, tuple[int, ...]]]:
    """Names and shapes of a released operator's weights: those that must be there, and those that can be computed."""
    wide, rows, last = (s.order + 1) * s.d_model, s.num_filters * s.d_model, 2 * (s.num_inner_mlps + 1)
    required: dict[str, tuple[int, ...]] = {
        "in_proj.weight": (wide, s.d_model),
        "in_proj.bias": (wide,),
        "out_proj.weight": (s.d_model, s.d_model),
        "out_proj.bias": (s.d_model,),
        "short_filter.weight": (wide, 1, s.short_filter_order),
        "short_filter.bias": (wide,),
        "filter_fn.bias": (rows,),
        f"filter_fn.implicit_filter.{last}.weight": (rows, s.filter_order),
    }
    optional: dict[str, tuple[int, ...]] = {
        "filter_fn.pos_emb.t": (1, s.l_max, 1),
        "filter_fn.modulation.deltas": (1, 1, rows),
    }
    if s.post_order_ffn:
        required["ord_proj_w"] = (s.order, 1, 1)
    for i in range(s.num_inner_mlps + 1):
        width = s.emb_dim if i == 0 else s.filter_order
        required[f"filter_fn.implicit_filter.{2 * i}.weight"] = (s.filter_order, width)
        required[f"filter_fn.implicit_filter.{2 * i}.bias"] = (s.filter_order,)
        # One freq for all layers; safetensors keeps one of its names only.
        (required if i == 0 and s.train_freq else optional)[f"filter_fn.implicit_filter.{2 * i + 1}.freq"] = (
            1,
            s.filter_order,
        )
    (required if s.positions == "trained" else optional)["filter_fn.pos_emb.z"] = (1, s.l_max, s.emb_dim)
    if s.modulation_lr != 0:
        required["filter_fn.modulation.deltas"] = optional.pop("filter_fn.modulation.deltas")
    return required, optional


def with_positions(s: Settings, tensors: Mapping[str, Tensor], learned: bool | None) -> Settings:
    """``s``, having decided what becomes of the checkpoint's table of positions; see :func:`operator_from_safari`.

    Raises:
        ValueError: a table for another ``l_max``, or ``learned=False`` and a table that has been trained.
    """
    z, t = tensors.get("filter_fn.pos_emb.z"), tensors.get("filter_fn.pos_emb.t")
    for name, table in (("z", z), ("t", t)):
        if table is not None and table.dim() == 3 and table.size(1) != s.l_max:
            raise ValueError(
                f"the checkpoint's positions (pos_emb.{name}) are for l_max={table.size(1)}, the config says l_max="
                f"{s.l_max}: a filter's time runs to 1 at l_max, so it has to be {table.size(1)}"
            )
    same = _is_computed(z, t, s)
    if learned is False and not same:
        raise ValueError("learned_encoding=False, but the checkpoint's positions have been trained: keep their table")
    if learned is not None:
        return dataclasses.replace(s, positions="trained" if learned else "computed")
    return s if same or s.positions == "trained" else dataclasses.replace(s, positions="frozen")


def _is_computed(z: Tensor | None, t: Tensor | None, s: Settings) -> bool:
    """Whether a stored table is the computed one, to its own rounding."""
    for table, width in ((z, s.emb_dim), (t, 1)):
        if table is None or table.dim() != 3 or table.size(2) != width:
            continue
        features, time = PositionalEncoding(s.emb_dim, s.l_max)(s.l_max, table.device, torch.float64)
        # Phases go up to 2 pi (E - 1) / 2, and their rounding is that of their size. Tables are built in float32 and
        # cast.
        eps = max(torch.finfo(table.dtype).eps, torch.finfo(torch.float32).eps)
        bound = eps * (4 + 2 * math.pi * s.emb_dim)
        if (table[0].double() - (features if width > 1 else time[:, None])).abs().max() > bound:
            return False
    return True


def build(s: Settings, tensors: Mapping[str, Tensor], layout: str) -> HyenaOperator:
    """The operator of checked settings and weights."""
    like = tensors["in_proj.weight"]
    operator = shell(s, like.dtype).to_empty(device=like.device)
    operator.load_state_dict(weights(s, tensors, layout))
    freeze(operator, s)
    return operator


def shell(s: Settings, dtype: torch.dtype) -> HyenaOperator:
    """The operator without memory: loading draws no random numbers, so a seeded script goes on as it would have."""
    at: dict[str, Any] = {"device": "meta", "dtype": dtype}
    encoding = StoredEncoding if s.positions != "computed" else PositionalEncoding
    inner = HyenaFilter(
        s.d_model,
        s.l_max,
        s.num_filters,
        encoding=encoding(s.emb_dim, s.l_max, **(at if encoding is StoredEncoding else {})),
        ffn=SineFFN(
            s.emb_dim, s.filter_order, s.num_filters * s.d_model, inner_layers=s.num_inner_mlps, freq=s.w, **at
        ),
        window=_window(s, at) if s.modulate else NoWindow(),
    )
    wrapped = s.num_blocks > 1
    return HyenaOperator(
        s.d_model,
        s.l_max,
        order=s.order,
        short_filter_order=s.short_filter_order,
        dropout=s.dropout,
        activation=s.activation,
        causal=not wrapped,
        num_blocks=s.num_blocks,
        post_order_ffn=s.post_order_ffn,
        filter=ReleasedFilter(inner, normalized=s.normalized, wrapped=wrapped) if s.normalized or wrapped else inner,
        **at,
    )


def weights(s: Settings, tensors: Mapping[str, Tensor], layout: str) -> dict[str, Tensor]:
    """The whole state of :func:`shell`'s operator."""
    ours = translate({**_computed(s, tensors["in_proj.weight"]), **tensors}, s, layout)
    if not s.bias:  # The released filter keeps the parameter and multiplies it by 0.
        ours["filter_bias"] = torch.zeros_like(ours["filter_bias"])
    return ours


def freeze(operator: HyenaOperator, s: Settings) -> None:
    """Leaves trainable what the released code trains."""
    frozen = {
        "filter_bias": not s.bias,
        s.prefix + "ffn.freq": not s.train_freq,
        s.prefix + "encoding.table": s.positions == "frozen",
    }
    for name, p in operator.named_parameters():
        if frozen.get(name, False):
            p.requires_grad_(False)


def _window(s: Settings, at: dict[str, Any]) -> ExponentialWindow:
    return ExponentialWindow(
        s.d_model,
        s.num_filters,
        slow_decay_pct=s.slow_decay_pct,
        fast_decay_pct=s.fast_decay_pct,
        target=s.target,
        shift=s.shift,
        trainable=s.modulation_lr != 0,
        **at,
    )


def _rules(s: Settings, layout: str) -> dict[str, tuple[str, Callable[[Tensor], Tensor]]]:
    """Released name -> our name, and how the one's tensor becomes the other's (by rearranging: gradients too)."""

    def rows(x: Tensor) -> Tensor:
        """Channels of all filters, ``(F * D, …)``, filter by filter: safari has them channel by channel."""
        return x.unflatten(0, (s.d_model, s.num_filters)).transpose(0, 1).flatten(0, 1) if layout == "safari" else x

    def same(x: Tensor) -> Tensor:
        return x

    ffn = s.prefix + "ffn."
    rules: dict[str, tuple[str, Callable[[Tensor], Tensor]]] = {
        **{name: (name, same) for part in ("in_proj", "out_proj") for name in (f"{part}.weight", f"{part}.bias")},
        "short_filter.weight": ("short_weight", lambda x: x[:, 0]),
        "short_filter.bias": ("short_bias", same),
        "filter_fn.bias": ("filter_bias", lambda x: rows(x).view(s.num_filters, s.d_model)),
        f"filter_fn.implicit_filter.{2 * (s.num_inner_mlps + 1)}.weight": (ffn + "out.weight", rows),
        # The last of the order matrices is never used.
        "ord_proj_w": ("head_mixing", lambda x: x[: s.num_filters]),
    }
    for i in range(s.num_inner_mlps + 1):
        for part in ("weight", "bias"):
            rules[f"filter_fn.implicit_filter.{2 * i}.{part}"] = (f"{ffn}hidden.{i}.{part}", same)
        rules[f"filter_fn.implicit_filter.{2 * i + 1}.freq"] = (ffn + "freq", lambda x: x[0])
    if s.positions != "computed":
        rules["filter_fn.pos_emb.z"] = (s.prefix + "encoding.table", lambda x: x[0])
        rules["filter_fn.pos_emb.t"] = (s.prefix + "encoding.time", lambda x: x[0, :, 0])
    if s.modulate:
        rules["filter_fn.modulation.deltas"] = (s.prefix + "window.deltas", lambda x: rows(x[0, 0]))
    return rules


def translate(tensors: Mapping[str, Tensor], s: Settings, layout: str) -> dict[str, Tensor]:
    """Weights, or gradients, by our names; without those that have no place here (computed positions, unused windows).

    Raises:
        ValueError: several values for the one freq that all layers share.
    """
    ours: dict[str, Tensor] = {}
    rules = _rules(s, layout)
    for name, x in tensors.items():
        if name not in rules:
            continue
        new, convert = rules[name]
        x = convert(x)
        if new in ours and not torch.equal(ours[new], x):
            raise ValueError(f"{name} differs from that of other layers, which share one in the released code")
        ours[new] = x
    return ours


def _computed(s: Settings, like: Tensor) -> dict[str, Tensor]:
    """What a checkpoint may leave out because the released code computes it when it is built, by its released names."""
    at: dict[str, Any] = {"device": like.device, "dtype": like.dtype}
    ends = (math.log(s.target) / s.slow_decay_pct, math.log(s.target) / s.fast_decay_pct)
    tensors = {
        "filter_fn.pos_emb.t": torch.linspace(0, 1, s.l_max, **at)[None, :, None],
        # One range over the channels of all filters, where ours spreads it over each filter.
        "filter_fn.modulation.deltas": torch.linspace(*ends, s.num_filters * s.d_model, **at)[None, None],
    }
    if s.positions == "trained":
        tensors["filter_fn.pos_emb.z"] = PositionalEncoding(s.emb_dim, s.l_max)(s.l_max, like.device, like.dtype)[0][
            None
        ]
    if not s.train_freq:
        tensors["filter_fn.implicit_filter.1.freq"] = torch.full((1, s.filter_order), float(s.w), **at)
    return tensors
