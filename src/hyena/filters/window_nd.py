"""Windows over grids: a product of one decay for each axis.

Dimensions: A axes, n positions of an axis, R rows of C channels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from hyena.filters._initial import fill
from hyena.filters.base import check_finite, check_flags, check_numbers, check_sizes


class ExponentialWindowND(nn.Module):
    """``exp(-|rate_1 t_1|) … exp(-|rate_A t_A|)``: some channels forget fast, others slowly.

    Lags ``t`` are parts of an axis, however many positions that has. Over the channels of a row, the lag at which a
    decay has fallen to ``target`` runs from ``slow_decay_pct`` of the axis to ``fast_decay_pct``, evenly in ``rate``,
    as in :class:`hyena.filters.ExponentialWindow` (arXiv 2302.10866, section 3.3). Every axis has rates of its own,
    which start alike.

    Args:
        channels: C.
        axes: A.
        rows: R.
        slow_decay_pct, fast_decay_pct, target: see above.
        trainable: whether the rates are trained.

    Raises:
        ValueError: a target outside (0, 1), or parts of the axis that are not positive.
    """

    power: ClassVar[int] = 1
    rates: Tensor

    def __init__(
        self,
        channels: int,
        axes: int,
        rows: int = 1,
        *,
        slow_decay_pct: float = 1.5,
        fast_decay_pct: float = 0.3,
        target: float = 1e-2,
        trainable: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_sizes(channels=channels, axes=axes, rows=rows)
        check_finite(target=target)
        check_numbers(slow_decay_pct=slow_decay_pct, fast_decay_pct=fast_decay_pct)
        check_flags(trainable=trainable)
        if not (0 < target < 1 and slow_decay_pct > 0 and fast_decay_pct > 0):  # so that NaN is none of them
            raise ValueError(
                f"target must lie in (0, 1) and the decay percentages be positive, got target={target}, "
                f"slow_decay_pct={slow_decay_pct}, fast_decay_pct={fast_decay_pct}"
            )
        self.rows = rows
        fall = (-math.log(target)) ** (1 / self.power)
        self.ends = (fall / slow_decay_pct, fall / fast_decay_pct)
        rates = torch.empty(axes, rows * channels, device=device, dtype=dtype)
        if trainable:
            self.rates = nn.Parameter(rates)
        else:
            self.register_buffer("rates", rates)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Spaces the rates again: the whole range for each row."""
        fill(self.rates, self.initial_rates())

    def initial_rates(self) -> Tensor:
        """``(A, R * C)``, what :meth:`reset_parameters` writes."""
        axes, columns = self.rates.shape
        row = torch.linspace(*self.ends, columns // self.rows, device=self.rates.device, dtype=self.rates.dtype)
        return row.repeat(axes, self.rows)

    def forward(self, times: Sequence[Tensor]) -> list[Tensor]:
        """Lags of each axis, ``(n,)``, to the factors of the window, ``(n, R * C)``."""
        return self.at(times, self.rates)

    def at(self, times: Sequence[Tensor], rates: Tensor) -> list[Tensor]:
        """:meth:`forward` with other rates."""
        exponents = [t[:, None] * rate.to(t.dtype).abs() for t, rate in zip(times, rates, strict=True)]
        return [torch.exp(-(e**self.power)) for e in exponents]

    def extra_repr(self) -> str:
        return f"channels={self.rates.size(1)}, axes={self.rates.size(0)}"


class GaussianWindowND(ExponentialWindowND):
    """``exp(-(rate_1 t_1)²) … exp(-(rate_A t_A)²)``: smooth at lag zero; otherwise as :class:`ExponentialWindowND`."""

    power = 2
