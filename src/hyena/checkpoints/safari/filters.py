"""What released filters do and this library's do not: stored times, no window, normalised and wrapped taps.

Dimensions: F filters, K taps, C channels, E features of the encoding.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hyena.filters import HyenaFilter, LearnedEncoding


class StoredEncoding(LearnedEncoding):
    """A trained table of features together with the times it was trained with.

    The released code stores both. Its times are rounded to the dtype the model was built in, and keep that rounding
    when it is cast: what the window computes from them can only be repeated with the same numbers.

    Args:
        emb_dim: E.
        l_max: rows of the table.
    """

    time: Tensor

    def __init__(
        self, emb_dim: int, l_max: int, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__(emb_dim, l_max, device=torch.device(device) if device is not None else None, dtype=dtype)
        self.register_buffer("time", torch.linspace(0, 1, l_max, device=device, dtype=dtype))

    def forward(self, length: int, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """The first ``length`` positions: features ``(K, E)`` and time ``(K,)``."""
        return self.table[:length].to(dtype), self.time[:length].to(dtype)


class NoWindow(nn.Module):
    """Leaves a filter as its FFN makes it (``modulate=False`` in the released code)."""

    def forward(self, t: Tensor) -> Tensor:
        """Time ``(K,) -> (K, 1)`` ones."""
        return torch.ones_like(t)[:, None]


class ReleasedFilter(nn.Module):
    """A filter with what the released code does to its taps before it convolves with them.

    ``normalized`` divides the taps of each position by the sum of their magnitudes over all channels and filters.

    ``wrapped`` is ``num_blocks > 1``. The released code then transforms a block of ``K`` positions with ``2 K``
    points, but hands the transform the filter of the whole row, of which it takes the first ``2 K`` taps. They wrap
    around: lag ``-k`` inside a block is multiplied by tap ``2 K - k``, so that a position sees the later ones of its
    block. Checkpoints have been trained like that; here the wrapped taps are the behind half of a two-sided filter.

    Args:
        inner: the causal filter, its ``l_max`` that of the whole row.
        normalized: see above.
        wrapped: see above.
    """

    def __init__(self, inner: HyenaFilter, *, normalized: bool, wrapped: bool) -> None:
        super().__init__()
        self.inner, self.normalized, self.wrapped = inner, normalized, wrapped
        self.depends_on_length = wrapped

    def reset_parameters(self) -> None:
        """Initialises the filter again."""
        self.inner.reset_parameters()

    def forward(self, length: int) -> Tensor:
        """``(F, length, C)``, or ``(F, 2 * length - 1, C)`` with lags ``-(length-1) … length-1`` if wrapped."""
        h = self.inner(2 * length if self.wrapped else length)
        if self.normalized:
            h = h / h.abs().sum((0, 2), keepdim=True)
        if self.wrapped:
            h = torch.cat([h[:, length + 1 :], h[:, :length]], dim=1)
        return h

    def extra_repr(self) -> str:
        return f"normalized={self.normalized}, wrapped={self.wrapped}"
