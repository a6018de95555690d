"""Positional encodings: the features of time that a filter's FFN sees.

An encoding is called as ``encoding(length, device, dtype)`` and returns features ``(K, E)`` and times ``(K,)``. One
that can be used at another ``l_max`` has a method ``extend(old, new, mode)``; see :meth:`hyena.filters.Filter.extend`.

Dimensions: K taps, E features.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import Self

from hyena.filters._initial import empty, fill
from hyena.filters.base import Filter, check_sizes, keeping_float32


def normalised_time(length: int, time_unit: Tensor | int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Times of the first ``length`` positions: 0 at the first, 1 at position ``time_unit - 1``."""
    if isinstance(time_unit, Tensor):
        return torch.arange(length, device=device, dtype=dtype) / (time_unit - 1).clamp_min(1)
    return torch.arange(length, device=device, dtype=dtype) / max(time_unit - 1, 1)


class PositionalEncoding(nn.Module):
    """``[t, Re exp(-i f w), Im exp(-i f w)]`` with ``w = 2 pi k / time_unit`` (arXiv 2302.10866, appendix D.3).

    The frequencies ``f`` are ``(emb_dim - 1) / 2`` values from 1e-4 to ``(emb_dim - 1) / 2 - 1``, as in the released
    code. Features are computed at every call, not stored, for any number of positions: a state dict does not grow with
    ``l_max``, and the same weights load at another ``l_max``.

    The unit of time is a buffer, so that it is saved and loaded with the weights that were trained with it. State dicts
    without one are taken to be in the unit that this module was made with.

    Args:
        emb_dim: number of features E, odd and at least 3: time, and a cosine and a sine for each frequency.
        time_unit: positions at which time reaches 1; a filter's ``l_max`` unless it says otherwise.
    """

    time_unit: Tensor

    def __init__(
        self,
        emb_dim: int,
        time_unit: int,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_sizes(emb_dim=emb_dim, time_unit=time_unit)
        if emb_dim < 3 or emb_dim % 2 == 0:
            raise ValueError(f"emb_dim must be odd and at least 3 (time, cosines, sines), got {emb_dim}")
        self.emb_dim, self._unit = emb_dim, int(time_unit)
        # A number as the weights, not an integer, for code that takes all of a state dict for floating point.
        self.register_buffer("time_unit", torch.empty((), device=device, dtype=Filter.weight_dtype(dtype)))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Restores the unit of time that the module was made with, or last extended to."""
        fill(self.time_unit, empty(self.time_unit).fill_(self._unit))

    def initial(self, length: int, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """:meth:`forward` right after :meth:`reset_parameters`."""
        return PositionalEncoding(self.emb_dim, self._unit, device=device)(length, device, dtype)

    def extend(self, old: int, new: int, mode: str) -> None:
        """See :meth:`hyena.filters.Filter.extend`: ``"stretch"`` multiplies the unit of time by ``new / old``."""
        # What was loaded counts, not what the module was made with.
        unit = self._unit if self.time_unit.is_meta else round(self.time_unit.item())
        self._unit = max(1, round(unit * new / old)) if mode == "stretch" else unit
        self.reset_parameters()

    def forward(self, length: int, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """The first ``length`` positions: features ``(K, E)`` and time ``(K,)``."""
        unit = self.time_unit.to(device)
        t = normalised_time(length, unit, device, dtype)
        bands = (self.emb_dim - 1) // 2
        f = torch.linspace(1e-4, bands - 1, bands, device=device, dtype=dtype)
        w = torch.arange(length, device=device, dtype=dtype) / unit * (2 * math.pi)
        phase = w[:, None] * f
        return torch.cat([t[:, None], torch.cos(phase), -torch.sin(phase)], dim=1), t

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        return super()._apply(keeping_float32(fn), recurse)  # bfloat16 has no 257

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        state_dict.setdefault(prefix + "time_unit", torch.tensor(self._unit, dtype=self.time_unit.dtype))
        super()._load_from_state_dict(state_dict, prefix, *args)

    def extra_repr(self) -> str:
        unit = self._unit if self.time_unit.is_meta else self.time_unit.item()
        return f"emb_dim={self.emb_dim}, time_unit={unit:.12g}"


class LearnedEncoding(nn.Module):
    """A trained table of features, started from :class:`PositionalEncoding` (the released code's ``lr_pos_emb > 0``).

    It has one row for each position up to ``l_max``, where time reaches 1, and cannot be used for longer rows. Use it
    for checkpoints that have one, or to measure whether it helps.
    """

    def __init__(
        self, emb_dim: int, l_max: int, device: torch.device | None = None, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__()
        self.emb_dim, self.l_max = emb_dim, l_max
        self.table = nn.Parameter(torch.empty(l_max, emb_dim, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Writes the computed features into the table."""
        fill(self.table, self.initial(self.l_max, self.table.device, self.table.dtype)[0])

    def initial(self, length: int, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """:meth:`forward` right after :meth:`reset_parameters`."""
        return PositionalEncoding(self.emb_dim, self.l_max, device=device)(length, device, dtype)

    def extend(self, old: int, new: int, mode: str) -> None:
        """Raises ValueError, unless fewer positions are wanted: nothing was trained for rows beyond the table."""
        if mode != "continue" or new > self.l_max:
            raise ValueError(
                f"a LearnedEncoding is a table of {self.l_max} positions, which cannot be used for l_max={new} "
                f"(mode={mode!r}): only mode='continue' up to l_max={self.l_max} is possible"
            )

    def forward(self, length: int, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """The first ``length`` positions: features ``(K, E)`` and time ``(K,)``."""
        return self.table[:length].to(dtype), normalised_time(length, self.l_max, device, dtype)

    def extra_repr(self) -> str:
        return f"emb_dim={self.emb_dim}, l_max={self.l_max}"
