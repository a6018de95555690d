"""The released operators' constructor keywords, and what each of them means here."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from hyena.checkpoints.files import check_keys

# How the released code lays the filters' channels out where there are several filters (order 3 and up).
LAYOUTS = ("safari", "standalone")

# Released names of activations -> ours.
_ACTIVATIONS = {
    None: None,
    "id": None,
    "identity": None,
    "linear": None,
    "gelu": "gelu",
    "relu": "relu",
    "sigmoid": "sigmoid",
    "silu": "silu",
    "swish": "silu",
    "tanh": "tanh",
}

# Keywords that change how the released code computes or trains, not what it computes: kernels, optimizer settings,
# and a dropout that its own docstring calls not implemented.
_WITHOUT_EFFECT = {
    "device",
    "dtype",
    "filter_dropout",
    "fused_bias_fc",
    "fused_fft_conv",
    "jit_filter",
    "layer_idx",
    "lr",
    "return_state",
    "wd",
}

# Keywords that this loader takes with one value only, and why.
_FIXED: dict[str, tuple[Any, str]] = {
    "_name_": ("hyena", "other layers are not Hyena operators"),
    "filter_cls": ("hyena-filter", "other filters have other weights"),
    "num_heads": (1, "the released operator raises on every input with more heads"),
    "inner_factor": (1, "the released operator raises on every input with a wider inside"),
    "outer_mixing": (
        False,
        "it multiplies the value by the sum over all channels of a gate, which no released model uses",
    ),
    "linear_mixer": (False, "it replaces the filter's FFN, in no released model"),
    "bidirectional": (False, "it shifts the input by half its length, in no released model"),
}
# The same for the standalone operator: it has no such keywords, and swallows them without a word.
_FIXED_STANDALONE: dict[str, tuple[Any, str]] = {
    "num_heads": (1, "the standalone operator does not read it"),
    "inner_factor": (1, "the standalone operator does not read it"),
    "num_blocks": (1, "the standalone operator does not read it"),
    "post_order_ffn": (False, "the standalone operator does not read it"),
    "short_filter_order": (3, "the standalone operator does not read it, and always has 3 taps"),
    "activation": ("id", "the standalone operator does not read it"),
    "normalized": (False, "the standalone operator does not use it"),
}


@dataclasses.dataclass(frozen=True)
class Settings:
    """One released operator. Names and defaults are those of the released constructors, where they have an effect."""

    d_model: int
    l_max: int
    order: int = 2
    filter_order: int = 64
    emb_dim: int = 3
    num_inner_mlps: int = 2
    w: float = 1.0
    train_freq: bool = True
    short_filter_order: int = 3
    dropout: float = 0.0
    activation: str | None = None
    num_blocks: int = 1
    post_order_ffn: bool = False
    bias: bool = True
    normalized: bool = False
    lr_pos_emb: float | None = 1e-5
    modulate: bool = True
    modulation_lr: float | None = 0.0
    shift: float = 0.0
    fast_decay_pct: float = 0.3
    slow_decay_pct: float = 1.5
    target: float = 1e-2
    # Not a released keyword: what becomes of the table of positions, one of "computed", "frozen" and "trained".
    positions: str = "trained"

    @property
    def num_filters(self) -> int:
        """F: the released operators have one filter less than gates."""
        return self.order - 1

    @property
    def prefix(self) -> str:
        """Where the filter's parts are inside our operator."""
        return "filter.inner." if self.normalized or self.num_blocks > 1 else "filter."


def settings_from(config: Mapping[str, Any], layout: str, **defaults: Any) -> Settings:
    """Reads the keywords of a released operator.

    Args:
        config: keywords of ``HyenaOperator`` in the released code, those of its filter among them.
        layout: one of ``LAYOUTS``.
        defaults: defaults that differ from safari's.

    Raises:
        ValueError: keys that are not known, listed; or values that the released code cannot run or this library does
            not take, with the reason.
    """
    if layout not in LAYOUTS:
        raise ValueError(f"layout must be one of {list(LAYOUTS)}, got {layout!r}")
    fields = {f.name for f in dataclasses.fields(Settings)} - {"train_freq", "positions"}
    check_keys(config, fields | _WITHOUT_EFFECT | set(_FIXED) | {"local_order"}, "a Hyena operator")
    values = {**defaults, **config}
    lacking = [name for name in ("d_model", "l_max") if name not in values]
    if lacking:
        raise ValueError(f"the config of a Hyena operator needs {' and '.join(lacking)}")
    if not values.get("bias", True) and layout == "standalone":
        raise ValueError("bias=False: the standalone operator does not read it, and always has the bias")
    taps = values.get("short_filter_order", 3)
    if values.get("local_order", taps) != taps:
        raise ValueError(
            f"local_order={values['local_order']} has no effect in the released code, whose short filter has "
            f"short_filter_order={taps} taps; remove it"
        )
    fixed = _FIXED | (_FIXED_STANDALONE if layout == "standalone" else {})
    for name, (value, reason) in fixed.items():
        if values.get(name, value) not in (value, *((None,) if name == "activation" else ())):
            raise ValueError(f"{name}={values[name]!r} cannot be loaded, only {value!r}: {reason}")
    activation = values.get("activation")
    if activation not in _ACTIVATIONS:
        raise ValueError(f"activation={activation!r} cannot be loaded, only one of {list(_ACTIVATIONS)}")
    if values.get("order", 2) < 2:
        raise ValueError(f"order={values['order']}: the released operators have an order of at least 2")
    kept = {name: value for name, value in values.items() if name in fields}
    # The released code registers what has a learning rate of 0 as a buffer, everything else (None too) as a parameter.
    positions = "trained" if values.get("lr_pos_emb", Settings.lr_pos_emb) != 0 else "computed"
    return Settings(**{**kept, "activation": _ACTIVATIONS[activation], "positions": positions})
