"""The interface of long filters: a length in, taps out.

Dimensions: B batch, F filters (one for each long convolution), G channels of a filter, K taps, m modes, Q channels of a
condition.
"""

from __future__ import annotations

import abc
import math
import numbers
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from typing_extensions import Self

# Ways to use a trained filter at another l_max; see Filter.extend.
EXTENSIONS = ("continue", "stretch")


class Modes(NamedTuple):
    """Poles and residues of filters: ``h_0 = first`` and ``h_t = sum_k Re(residue_k p_k^(t-1))`` for ``t >= 1``.

    The poles are ``p = exp(-decay + i angle)``.

    Attributes:
        decay: ``(F, G, m)``, float32 or float64; positive, or the mode grows.
        angle: ``(F, G, m)``, radians a position. Zero everywhere in real filters.
        residue: ``(F, G, m)``, complex. Real filters (all poles real and positive) have a real tensor here, and a
            recurrence over them needs no complex state.
        first: ``(F, G)``, the tap at lag 0.
    """

    decay: Tensor
    angle: Tensor
    residue: Tensor
    first: Tensor

    @property
    def is_real(self) -> bool:
        """Whether all poles are real and positive, so that states are real."""
        return not self.residue.is_complex()


class FilterBase(nn.Module, abc.ABC):
    """What filters along a sequence and over grids have in common: weights that stay float32; see :class:`Filter`.

    Attributes:
        keep_float32: whether they do.
        dynamics: names of the parameters that say how states move on.
        condition_dim: Q, if ``forward`` also takes a condition ``(B, Q)``; None if it does not.
    """

    keep_float32: bool = True
    dynamics: tuple[str, ...] = ()
    condition_dim: int | None = None

    @classmethod
    def weight_dtype(cls, dtype: torch.dtype | None) -> torch.dtype:
        """The dtype of new weights where ``dtype`` (None: torch's default) was asked for; see ``keep_float32``."""
        dtype = torch.get_default_dtype() if dtype is None else dtype
        return torch.float32 if cls.keep_float32 and _is_lower(dtype) else dtype

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Every cast and move of ``nn.Module`` comes through here, this module's and those of modules around it."""
        return super()._apply(keeping_float32(fn) if self.keep_float32 else fn, recurse)

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, local_metadata: dict[str, Any], *args: Any
    ) -> None:
        # With assign=True tensors take the weights' place as they are, also those of the parts, which come after.
        if self.keep_float32 and local_metadata.get("assign_to_params_buffers", False):
            for name, t in state_dict.items():
                if name.startswith(prefix) and isinstance(t, Tensor):
                    state_dict[name] = at_least_float32(t)
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *args)


class Filter(FilterBase):
    """Base of all long filters: a module that is called with a length and returns taps.

    A filter is data: it does not know how its taps are applied. To write one, subclass this, keep the constructor's
    first arguments, and return taps from ``forward``; everything else has a default. Constructors of this library's
    filters are ``(channels, l_max, num_filters=1, *, causal=True, ..., device=None, dtype=None)``, so that
    ``functools.partial(SomeFilter, option=...)`` describes a filter whose sizes are not known yet.

    Weights stay float32 when a module around the filter is cast to a lower precision (``.bfloat16()``, ``.half()``,
    ``.to(torch.bfloat16)``), when one is built in it (``dtype=torch.bfloat16``) and when weights of one are loaded
    (``assign=True`` too): taps computed from rounded weights are off by 12 %, ten times as far as the activations.
    Casts to float64 and back pass. For a filter whose weights shall follow every cast, set ``keep_float32 = False`` on
    the instance, on a subclass, or on ``Filter`` for all of them. FSDP2 casts what it gathers for a module without
    asking it: shard filters apart, ``fully_shard(filter)`` without a mixed-precision policy, before what is around
    them.

    Args:
        channels: G.
        l_max: most taps that may be asked for.
        num_filters: F.
        causal: lags from 0 on; otherwise two-sided.

    Attributes:
        support: taps from this lag on (two-sided: from this lag on in both directions) are zero and need not be
            returned; None if there is no such lag.
        depends_on_length: the taps for a length are not the first of those for a longer one (normalised over the
            length, say). One spectrum then serves one length, and the filter cannot be stepped.
        continues: whether the same weights give the taps beyond ``l_max``, so that :meth:`extend` may raise it.
        stretch_keeps_sums: whether :meth:`extend` by ``"stretch"`` divides taps by as much as there are more of them,
            as the steps of a state space do; otherwise every tap keeps its size.
        keep_float32: see above.
        dynamics: names of the parameters that say how states move on (poles, step sizes), which are trained at a rate
            of at most 1e-3; see :func:`hyena.param_groups`.
        condition_dim: Q, if ``forward`` also takes a condition ``(B, Q)`` and then returns taps ``(B, F, n, G)``, a
            filter for each row; None if it does not.

    Raises:
        TypeError: sizes that are not integers, or ``causal`` that is not a bool.
        ValueError: a size below 1.
    """

    support: int | None = None
    depends_on_length: bool = False
    continues: bool = False
    stretch_keeps_sums: bool = False

    def __init__(self, channels: int, l_max: int, num_filters: int = 1, *, causal: bool = True) -> None:
        super().__init__()
        check_sizes(channels=channels, l_max=l_max, num_filters=num_filters)
        check_flags(causal=causal)
        self.channels, self.l_max, self.num_filters, self.causal = channels, l_max, num_filters, causal

    @property
    def _rows(self) -> int:
        """R: rows of weights in filters that have one for each direction, F or 2 F."""
        return self.num_filters * (1 if self.causal else 2)

    @abc.abstractmethod
    def forward(self, length: int) -> Tensor:
        """Taps for rows of ``length`` positions.

        Returns:
            ``(F, n, G)`` with ``n = length``, or ``min(length, support)`` of a filter with a ``support``. Two-sided
            ``(F, 2 n - 1, G)`` with lags ``-(n-1) … n-1``. float64 if the weights are, else float32.

        Raises:
            TypeError: ``length`` is no integer.
            ValueError: ``length`` is more than ``l_max``.
        """

    def modes(self) -> Modes | None:
        """Poles and residues, if the taps are a sum of decaying exponentials: the filter then steps in constant time.

        None, the default, if they are not.
        """
        return None

    def extend(self, l_max: int, mode: str = "continue") -> None:
        """Changes how many taps may be asked for, in place.

        Args:
            l_max: the new limit, larger or smaller.
            mode: ``"continue"`` leaves every tap as it is and goes on after the old limit; ``"stretch"`` scales time
                by ``new / old``, so that the filter keeps its shape over the whole row.

        Raises:
            ValueError: a filter that cannot do that, with the reason.
        """
        check_extension(l_max, mode)
        if mode != "continue" or (l_max > self.l_max and not self.continues):
            raise ValueError(
                f"a {type(self).__name__} made for l_max={self.l_max} does not say how it is used at l_max={l_max} "
                f"(mode={mode!r}): its class would have to define extend(l_max, mode)"
                + (", or set continues = True if its taps go on" if mode == "continue" else "")
            )
        self.l_max = l_max

    def channel_axes(self) -> dict[str, int]:
        """Weights that have entries for each channel, by name, and their axis; all other weights serve all channels.

        An axis may hold several rows of ``channels`` entries one after the other. With it a process that mixes some of
        the channels makes their taps alone. Empty, the default, if that is not said: all taps are made then.
        """
        return {}

    def taps_shape(self, length: int) -> tuple[int, int, int]:
        """The shape of the taps that ``forward(length)`` returns."""
        n = length if self.support is None else min(length, self.support)
        return self.num_filters, n if self.causal else 2 * n - 1, self.channels

    def _both_directions(self, h: Tensor) -> Tensor:
        """Taps ``(R, n, G)`` of each row of weights as what ``forward`` returns.

        Two-sided filters have F rows of lags ``0, 1, …`` and then F of lags ``-1, -2, …``: ``(F, 2 n - 1, G)``.
        """
        if self.causal:
            return h
        return torch.cat([h[self.num_filters :, :-1].flip(1), h[: self.num_filters]], dim=1)

    def check_length(self, length: int) -> None:
        """Raises ValueError if more taps are asked for than ``l_max`` or fewer than one, TypeError for no integer."""
        if not is_integer(length):
            raise TypeError(f"a filter is called with a number of taps, an int, got {length!r}")
        if not 1 <= length <= self.l_max:
            raise ValueError(
                f"a filter of {length} taps is longer than this one's l_max={self.l_max}"
                if length > self.l_max
                else f"a filter has at least one tap, got a length of {length}"
            )

    def check_condition(self, condition: Tensor) -> None:
        """Raises ValueError if this filter takes no condition, or not one of this shape and dtype."""
        check_condition(self, condition)

    def extra_repr(self) -> str:
        return f"channels={self.channels}, l_max={self.l_max}, num_filters={self.num_filters}, causal={self.causal}"


def keeping_float32(fn: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """``fn`` with casts below float32 made casts to float32, from the numbers before the cast."""

    def apply(t: Tensor) -> Tensor:
        new = fn(t)
        if t.dtype != new.dtype and t.is_floating_point() and _is_lower(new.dtype):
            return t.to(new.device, torch.float32)
        return new

    return apply


def at_least_float32(t: Tensor) -> Tensor:
    """``t``, as float32 if its dtype is a lower one."""
    return t.float() if _is_lower(t.dtype) else t


def _is_lower(dtype: torch.dtype) -> bool:
    return dtype.is_floating_point and dtype.itemsize < torch.float32.itemsize


def check_sizes(**sizes: Any) -> None:
    """Raises TypeError or ValueError for sizes that are not integers of at least 1, by their names."""
    check_integers(**sizes)
    if any(size < 1 for size in sizes.values()):
        needs = ", ".join(f"{name} >= 1" for name in sizes)
        raise ValueError(f"need {needs}, got {', '.join(str(size) for size in sizes.values())}")


def is_integer(value: Any) -> bool:
    """Whether a value is an integer and no bool; a trace's integers, whose values are not known yet, are."""
    return isinstance(value, (numbers.Integral, torch.SymInt)) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    """Whether a value is a real number and no bool."""
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def check_integers(**values: Any) -> None:
    """Raises TypeError for arguments that are no integers, by their names."""
    for name, value in values.items():
        if not is_integer(value):
            raise TypeError(f"{name} must be an int, got {value!r}")


def check_flags(**flags: Any) -> None:
    """Raises TypeError for arguments that are neither True nor False, by their names."""
    for name, flag in flags.items():
        if not isinstance(flag, bool):
            raise TypeError(f"{name} must be True or False, got {flag!r}")


def check_numbers(**values: Any) -> None:
    """Raises TypeError for arguments that are no numbers, by their names."""
    for name, value in values.items():
        if not is_number(value):
            raise TypeError(f"{name} must be a number, got {value!r}")


def check_finite(**values: Any) -> None:
    """Raises TypeError or ValueError for arguments that are no finite numbers, by their names."""
    check_numbers(**values)
    for name, value in values.items():
        if not math.isfinite(value):
            raise ValueError(f"{name} must be finite, got {value}")


def check_condition(source: nn.Module, condition: Tensor, rows: int | None = None) -> None:
    """Raises TypeError or ValueError for what is no condition of the filter ``source``, or not of so many ``rows``."""
    if not isinstance(condition, Tensor):
        raise TypeError(f"condition must be a tensor (B, Q), a vector for each row, got a {type(condition).__name__}")
    dim = getattr(source, "condition_dim", None)
    if dim is None:
        raise ValueError(
            f"a condition was given to a {type(source).__name__}, which takes none (condition_dim is None): "
            "hyena.filters.FiLMFilter does, and FiLMFilterND over grids"
        )
    good = condition.dim() == 2 and condition.size(1) == dim and condition.is_floating_point()
    if not good or rows not in (None, condition.size(0)):
        wanted = "B" if rows is None else rows
        raise ValueError(
            f"condition must be floating point of shape ({wanted}, {dim}), a vector for each row, got "
            f"{condition.dtype} of shape {tuple(condition.shape)}"
        )


def check_extension_of_taps(source: Filter, l_max: int, mode: str) -> None:
    """As :func:`check_extension`, of a filter whose taps belong to positions, so that it cannot be stretched."""
    check_extension(l_max, mode)
    if mode == "stretch":
        raise ValueError(
            f"the {source.support} taps of this {type(source).__name__} belong to positions and cannot be stretched "
            f"from l_max={source.l_max} to {l_max}; use mode='continue', which leaves them as they are"
        )


def check_extension(l_max: int, mode: str) -> None:
    """Raises TypeError or ValueError for arguments of :meth:`Filter.extend` that are none."""
    check_sizes(l_max=l_max)
    if mode not in EXTENSIONS:
        raise ValueError(f"mode must be one of {', '.join(map(repr, EXTENSIONS))}, got {mode!r}")
