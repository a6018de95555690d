"""The window that gives a filter its decay.

Dimensions: K taps, F filters, C channels.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from hyena import ops
from hyena.filters._initial import fill
from hyena.filters.base import check_finite, check_flags, check_numbers, check_sizes


@ops.fusible
class ExponentialWindow(nn.Module):
    """``exp(-t |delta_c|) + shift``: some channels forget fast, others slowly (arXiv 2302.10866, section 3.3).

    ``delta`` runs linearly from ``log(target) / slow_decay_pct`` to ``log(target) / fast_decay_pct`` over the channels:
    the slowest has fallen to ``target`` after ``slow_decay_pct`` of the unit of time, the fastest after
    ``fast_decay_pct``.
    """

    deltas: Tensor

    def __init__(
        self,
        channels: int,
        num_filters: int = 1,
        *,
        slow_decay_pct: float = 1.5,
        fast_decay_pct: float = 0.3,
        target: float = 1e-2,
        shift: float = 0.0,
        trainable: bool = False,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_sizes(channels=channels, num_filters=num_filters)
        check_finite(target=target, shift=shift)
        check_numbers(slow_decay_pct=slow_decay_pct, fast_decay_pct=fast_decay_pct)
        check_flags(trainable=trainable)
        if not (0 < target < 1 and slow_decay_pct > 0 and fast_decay_pct > 0):  # so that NaN is none of them
            raise ValueError(
                f"target must lie in (0, 1) and the decay percentages be positive, got target={target}, "
                f"slow_decay_pct={slow_decay_pct}, fast_decay_pct={fast_decay_pct}"
            )
        self.num_filters, self.shift = num_filters, shift
        self.ends = (math.log(target) / slow_decay_pct, math.log(target) / fast_decay_pct)
        deltas = torch.empty(num_filters * channels, device=device, dtype=dtype)
        if trainable:
            self.deltas = nn.Parameter(deltas)
        else:
            self.register_buffer("deltas", deltas)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Spaces the decays again: the whole range for each filter."""
        fill(self.deltas, self.initial_deltas())

    def initial_deltas(self) -> Tensor:
        """The decays ``(F * C,)`` that :meth:`reset_parameters` writes."""
        each = self.deltas.numel() // self.num_filters
        row = torch.linspace(*self.ends, each, device=self.deltas.device, dtype=self.deltas.dtype)
        return row.repeat(self.num_filters)

    def forward(self, t: Tensor) -> Tensor:
        """Time ``(K,) -> (K, F * C)``."""
        return self.at(t, self.deltas)

    def at(self, t: Tensor, deltas: Tensor) -> Tensor:
        """:meth:`forward` with other decays."""
        decay = torch.outer(-t, deltas.to(t.dtype).abs())
        # Without a gradient to keep anything for, in place: the window is as large as all filters together.
        decay = decay.exp() if decay.requires_grad else decay.exp_()
        if self.shift == 0:
            return decay
        return decay + self.shift

    def extra_repr(self) -> str:
        return f"channels={self.deltas.numel()}, shift={self.shift}"
