"""Constructor keywords of the released operators: what each of them means here, and which are refused."""

from __future__ import annotations

import dataclasses
import enum
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from hyena.checkpoints.checks import check_flag, check_integer, check_keys, check_number
from hyena.filters import PositionalEncoding

LAYOUTS = ("safari", "standalone", "zoology")
"""The released codes whose weights have the same names and different meanings.

``"safari"`` is src/models/sequence/hyena.py of HazyResearch/safari, ``"standalone"`` its standalone_hyena.py, which
stores filter after filter where there are several (order 3 and up), and ``"zoology"`` zoology/mixers/hyena.py of
HazyResearch/zoology, whose first projection is the gate before the long convolution, not the one after it.
"""

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
_UNREAD = "the {} operator does not read it"
# The same for operators that have no such keyword, and swallow it without a word.
_FIXED_IN: dict[str, dict[str, tuple[Any, str]]] = {
    "safari": {},
    "standalone": {
        "num_heads": (1, _UNREAD),
        "inner_factor": (1, _UNREAD),
        "num_blocks": (1, _UNREAD),
        "post_order_ffn": (False, _UNREAD),
        "short_filter_order": (3, _UNREAD + ", and always has 3 taps"),
        "activation": ("id", _UNREAD),
        "normalized": (False, _UNREAD),
        "bias": (True, _UNREAD + ", and always has the bias"),
    },
    "zoology": {
        "order": (2, _UNREAD + ", and always has one long filter"),
        "inner_factor": (1, _UNREAD),
        "post_order_ffn": (False, _UNREAD),
        "activation": ("id", _UNREAD),
    },
}

_INTEGERS = {
    "d_model": 1,
    "l_max": 1,
    "order": 2,
    "filter_order": 1,
    "emb_dim": 3,
    "num_inner_mlps": 0,
    "short_filter_order": 1,
    "num_blocks": 1,
}
_FLAGS = ("train_freq", "post_order_ffn", "bias", "normalized", "modulate")
_TINY = 1e-30
_NUMBERS = {
    "w": (-math.inf, math.inf),
    "dropout": (0.0, 1.0),
    "shift": (-math.inf, math.inf),
    "fast_decay_pct": (_TINY, math.inf),
    "slow_decay_pct": (_TINY, math.inf),
    "target": (_TINY, math.inf),
}
# None or a learning rate; the released code registers what has a rate of 0 as a buffer, the rest as parameters.
_RATES = ("lr_pos_emb", "modulation_lr")


class Positions(enum.Enum):
    """What becomes of a checkpoint's table of positions, the features that the filter's FFN sees."""

    COMPUTED = "not kept: it is what the features of time are, and these are computed"
    FROZEN = "kept, not trained"
    TRAINED = "kept, and a parameter"

    @staticmethod
    def of(config: SafariConfig, tensors: Mapping[str, Tensor], learned: bool | None, goes_on: bool) -> Positions:
        """Decides it for one operator, whose tensors have been checked.

        Args:
            config: the operator's.
            tensors: by their released names.
            learned: the user's wish; see :func:`load_safari_operator`.
            goes_on: a table that has been trained is trained further even where its learning rate is 0.

        Raises:
            ValueError: ``learned=False`` and a table that has been trained.
        """
        is_computed = config.has_computed_positions(tensors)
        if learned is False and not is_computed:
            raise ValueError(
                "learned_encoding=False, but the checkpoint's positions have been trained: keep their table"
            )
        if learned is not None:
            return Positions.TRAINED if learned else Positions.COMPUTED
        if config.trains_positions:
            return Positions.TRAINED
        if is_computed:
            return Positions.COMPUTED
        return Positions.TRAINED if goes_on else Positions.FROZEN


@dataclasses.dataclass(frozen=True)
class SafariConfig:
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

    def __post_init__(self) -> None:
        """Checks every value.

        Raises:
            ValueError: a value of another type, or out of range.
        """
        for name, least in _INTEGERS.items():
            check_integer(name, getattr(self, name), least)
        for name in _FLAGS:
            check_flag(name, getattr(self, name))
        for name, bounds in _NUMBERS.items():
            check_number(name, getattr(self, name), *bounds)
        for name in _RATES:
            if getattr(self, name) is not None:
                check_number(name, getattr(self, name), 0.0)
        if self.emb_dim % 2 == 0:
            raise ValueError(f"emb_dim={self.emb_dim} cannot be loaded: it must be odd (time, cosines, sines)")
        if self.l_max % self.num_blocks:
            raise ValueError(f"num_blocks={self.num_blocks} cannot be loaded: it must divide l_max={self.l_max}")

    @classmethod
    def from_keywords(cls, keywords: Mapping[str, Any], layout: str, **defaults: Any) -> SafariConfig:
        """Reads the keywords of a released operator.

        Args:
            keywords: of ``HyenaOperator`` in the released code, those of its filter among them.
            layout: one of ``LAYOUTS``.
            defaults: defaults that differ from safari's.

        Raises:
            ValueError: keys that are not known, listed; or values that the released code cannot run or this library
                does not take, with the reason.
        """
        if layout not in LAYOUTS:
            raise ValueError(f"layout must be one of {', '.join(LAYOUTS)}, got {layout!r}")
        fields = {f.name for f in dataclasses.fields(cls)} - {"train_freq"}
        check_keys(keywords, fields | _WITHOUT_EFFECT | set(_FIXED) | {"local_order"}, "a Hyena operator")
        values = {**defaults, **keywords}
        if lacking := [name for name in ("d_model", "l_max") if name not in values]:
            raise ValueError(f"the config of a Hyena operator needs {' and '.join(lacking)}")
        taps = values.get("short_filter_order", cls.short_filter_order)
        if "local_order" in values and values["local_order"] != taps:
            raise ValueError(
                f"local_order={values['local_order']} has no effect in the released code, whose short filter has "
                f"short_filter_order={taps} taps; remove it"
            )
        for name, (value, reason) in {**_FIXED, **_FIXED_IN[layout]}.items():
            if values.get(name, value) not in (value, *((None,) if name == "activation" else ())):
                raise ValueError(f"{name}={values[name]!r} cannot be loaded, only {value!r}: {reason.format(layout)}")
        activation = values.get("activation")
        if not isinstance(activation, str | None) or activation not in _ACTIVATIONS:
            raise ValueError(f"activation={activation!r} cannot be loaded, only one of {list(_ACTIVATIONS)}")
        kept = {name: value for name, value in values.items() if name in fields or name == "train_freq"}
        return cls(**{**kept, "activation": _ACTIVATIONS[activation]})

    @property
    def num_filters(self) -> int:
        """F: the released operators have one filter less than gates."""
        return self.order - 1

    @property
    def trains_positions(self) -> bool:
        """Whether the released code makes the table of positions a parameter."""
        return self.lr_pos_emb != 0

    def has_computed_positions(self, tensors: Mapping[str, Tensor]) -> bool:
        """Whether the stored tables, if there are any, are the computed ones to their own rounding."""
        z, t = tensors.get("filter_fn.pos_emb.z"), tensors.get("filter_fn.pos_emb.t")
        for table in (z, t):
            if table is None:
                continue
            encoding = PositionalEncoding(self.emb_dim if table is z else 3, self.l_max)
            features, time = encoding(self.l_max, table.device, torch.float64)
            # Phases go up to 2 pi (E - 1) / 2, and their rounding is that of their size. Tables are built in float32
            # and cast.
            eps = max(torch.finfo(table.dtype).eps, torch.finfo(torch.float32).eps)
            bound = eps * (4 + 2 * math.pi * self.emb_dim)
            deviation = (table[0].double() - (features if table is z else time[:, None])).abs().max()
            if not deviation <= bound:  # NaN too
                return False
        return True

    def computed(self, positions: Positions, device: torch.device, dtype: torch.dtype) -> dict[str, Tensor]:
        """What a checkpoint may leave out because the released code computes it, by its released names."""
        at: dict[str, Any] = {"device": device, "dtype": dtype}
        tensors: dict[str, Tensor] = {}
        if self.modulate:
            ends = (math.log(self.target) / self.slow_decay_pct, math.log(self.target) / self.fast_decay_pct)
            # One range over the channels of all filters, where ours spreads it over each filter.
            tensors["filter_fn.modulation.deltas"] = torch.linspace(*ends, self.num_filters * self.d_model, **at)[
                None, None
            ]
        if positions is not Positions.COMPUTED:
            tensors["filter_fn.pos_emb.t"] = torch.linspace(0, 1, self.l_max, **at)[None, :, None]
        if not self.train_freq:
            tensors["filter_fn.implicit_filter.1.freq"] = torch.full((1, self.filter_order), float(self.w), **at)
        return tensors
