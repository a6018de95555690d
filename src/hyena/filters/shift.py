"""The shift state space of H3 (Fu, Dao et al. 2022, arXiv 2212.14052, section 3.1).

Dimensions: F filters, R rows of weights (F, two-sided 2 F), G filter channels, N states.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from hyena import ops
from hyena.filters._initial import empty, fill
from hyena.filters.base import Filter, check_extension_of_taps, check_sizes


class ShiftSSM(Filter):
    """The filter of H3's shift state space: a window of the last ``N`` inputs, its taps products of two vectors.

    ``A`` moves every state on by one place, so that ``h_t = C A^t B = sum_n C_{n+t} B_n`` for ``t < N``, and zero from
    there on (``support``): with ``B`` the first unit vector, its start, the taps are ``C``. Steps are from a window of
    ``N`` inputs.

    Weights: ``B`` and ``C`` ``(R, G, N)``, trained at a rate of at most 1e-3 for ``B`` (:func:`hyena.param_groups`).
    ``C`` starts as normal numbers of variance ``1 / N``; the released code's is 1.

    Args:
        channels: G.
        l_max: most positions of a row.
        num_filters: F.
        state: N, more than ``l_max`` if that is wanted.
        causal: lags ``0 … N-1``; otherwise lags ``-(N-1) … N-1``, with weights of their own for the negative ones,
            whose tap 0 is that of lag -1 (and whose tap ``N-1`` is not used).

    Raises:
        ValueError: a size below 1.
    """

    dynamics = ("B",)

    def __init__(
        self,
        channels: int,
        l_max: int,
        num_filters: int = 1,
        *,
        state: int = 64,
        causal: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(channels, l_max, num_filters, causal=causal)
        check_sizes(state=state)
        self.support = state
        shape = (self._rows, channels, state)
        at: dict[str, Any] = {"device": device, "dtype": self.weight_dtype(dtype)}
        self.B, self.C = nn.Parameter(torch.empty(shape, **at)), nn.Parameter(torch.empty(shape, **at))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Starts again: ``B`` as the first unit vector, ``C`` at random."""
        b = empty(self.B).zero_()
        b[..., 0] = 1
        fill(self.B, b)
        fill(self.C, empty(self.C).normal_(std=(self.C.size(-1) * (1 if self.causal else 2)) ** -0.5))

    def forward(self, length: int) -> Tensor:
        """Taps ``(F, n, G)``, two-sided ``(F, 2 n - 1, G)``, with ``n = min(length, N)``.

        Raises:
            ValueError: ``length`` is more than ``l_max``.
        """
        self.check_length(length)
        dtype, states = ops.compute_dtype(self.B), self.B.size(-1)
        b, c = self.B.to(dtype), self.C.to(dtype)
        with ops.without_autocast(b.device):
            # A correlation: no product of two of these can wrap around.
            room = ops.transform_length(2 * states)
            spectrum = torch.fft.rfft(c, n=room) * torch.fft.rfft(b, n=room).conj()
            h = torch.fft.irfft(spectrum, n=room)[..., : min(length, states)]
        return self._both_directions(h.transpose(1, 2))

    def channel_axes(self) -> dict[str, int]:
        """See :meth:`Filter.channel_axes`."""
        return {"B": 1, "C": 1}

    def extend(self, l_max: int, mode: str = "continue") -> None:
        """See :meth:`Filter.extend`. States are places: ``"stretch"`` is not possible."""
        check_extension_of_taps(self, l_max, mode)
        self.l_max = l_max

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, state={self.support}"
