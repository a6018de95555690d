"""Rotary positions: queries and keys turned by angles that grow with the position (arXiv 2104.09864, section 3.2).

Dimensions: B batch, M heads, n positions, d channels of a head.
"""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor


@dataclasses.dataclass(frozen=True)
class Rotary:
    """Rotary positions over whole heads: channels ``i`` and ``i + d/2`` turn by ``t f_i`` (GPT-NeoX's halves).

    ``f_i = base^(-2 i / d) / scaling``. Angles are computed in float64: in float32 those of a million positions are off
    by 0.03, and a row would depend on where it begins.

    Args:
        dim: d, even.
        base: of the frequencies.
        scaling: what positions are divided by (linear interpolation, arXiv 2306.15595).
        frequencies: ``d/2`` frequencies in place of ``base^(-2 i / d)``: those of a model that was trained with others.

    Raises:
        ValueError: numbers out of range.
    """

    dim: int
    base: float = 10000.0
    scaling: float = 1.0
    frequencies: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if self.dim % 2 != 0:
            raise ValueError(f"rotary positions turn pairs of channels: heads of {self.dim} channels have no pairs")
        for name, value in (("rotary_base", self.base), ("rotary_scaling", self.scaling)):
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
                raise ValueError(f"{name} must be a positive number, got {value!r}")
        if self.frequencies is not None and len(self.frequencies) != self.dim // 2:
            raise ValueError(
                f"rotary_frequencies must be {self.dim // 2} numbers, half of a head's {self.dim} channels, got "
                f"{len(self.frequencies)}"
            )

    def table(self, at: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Cosines and sines ``(n, d/2)`` of positions ``(n,)``."""
        # Apple's GPUs have no float64.
        exact = torch.float32 if at.device.type == "mps" else torch.float64
        if self.frequencies is None:
            pair = torch.arange(self.dim // 2, device=at.device, dtype=exact)
            frequency = torch.exp(pair * (-2 * math.log(self.base) / self.dim))
        else:
            frequency = torch.tensor(self.frequencies, device=at.device, dtype=exact)
        angle = (at.to(exact) / self.scaling)[:, None] * frequency
        return angle.cos().to(dtype), angle.sin().to(dtype)


def turn(x: Tensor, table: tuple[Tensor, Tensor]) -> Tensor:
    """``x`` ``(B, M, n, d)`` turned by the angles of a table, in its dtype."""
    cos, sin = table
    first, second = x.to(cos.dtype).chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1).to(x.dtype)
