"""Positional encodings: the features of time that a filter's FFN sees.

Dimensions: K taps, E features.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


def positions(length: int, l_max: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Normalised time of the first ``length`` of ``l_max`` positions: 0 at the first, 1 at the last of ``l_max``."""
    return torch.arange(length, device=device, dtype=dtype) / max(l_max - 1, 1)


class PositionalEncoding(nn.Module):
    """``[t, Re exp(-i f w), Im exp(-i f w)]`` with ``w = 2 pi k / l_max`` (arXiv 2302.10866, appendix D.3).

    The frequencies ``f`` are ``(emb_dim - 1) / 2`` values from 1e-4 to ``(emb_dim - 1) / 2 - 1``, as in the released
    code. Features are computed at every call, not stored: a model's state does not grow with ``l_max``, and the same
    weights load at another ``l_max``.

    Args:
        emb_dim: number of features E, odd and at least 3: time, and a cosine and a sine for each frequency.
        l_max: position count at which time reaches 1.
    """

    def __init__(self, emb_dim: int, l_max: int) -> None:
        super().__init__()
        if emb_dim < 3 or emb_dim % 2 == 0:
            raise ValueError(f"emb_dim must be odd and at least 3 (time, cosines, sines), got {emb_dim}")
        self.emb_dim, self.l_max = emb_dim, l_max

    def forward(self, length: int, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """The first ``length`` positions: features ``(K, E)`` and time ``(K,)``."""
        t = positions(length, self.l_max, device, dtype)
        bands = (self.emb_dim - 1) // 2
        f = torch.linspace(1e-4, bands - 1, bands, device=device, dtype=dtype)
        w = 2 * math.pi / self.l_max * torch.arange(length, device=device, dtype=dtype)
        phase = w[:, None] * f
        return torch.cat([t[:, None], torch.cos(phase), -torch.sin(phase)], dim=1), t

    def extra_repr(self) -> str:
        return f"emb_dim={self.emb_dim}, l_max={self.l_max}"


class LearnedEncoding(nn.Module):
    """A trained table of features, started from :class:`PositionalEncoding` (the released code's ``lr_pos_emb > 0``).

    Its size grows with ``l_max``; use it for checkpoints that have one, or to measure whether it helps.
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
        start = PositionalEncoding(self.emb_dim, self.l_max)
        with torch.no_grad():
            self.table.copy_(start(self.l_max, self.table.device, self.table.dtype)[0])

    def forward(self, length: int, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """The first ``length`` positions: features ``(K, E)`` and time ``(K,)``."""
        return self.table[:length].to(dtype), positions(length, self.l_max, device, dtype)

    def extra_repr(self) -> str:
        return f"emb_dim={self.emb_dim}, l_max={self.l_max}"
