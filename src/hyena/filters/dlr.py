"""DLR: diagonal linear recurrences (Gupta, Mehta and Berant 2022, arXiv 2212.00768).

Dimensions: F filters, R rows of weights (F, two-sided 2 F), G filter channels, m modes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from hyena.filters._initial import fill, whole
from hyena.filters.diagonal import DiagonalFilter, Terms, Weights, check_range, log_uniform


class DLR(DiagonalFilter):
    """The filter of a diagonal linear RNN: a state space without steps or discretisation (arXiv 2212.00768, section 3).

    ``h_t = Re sum_k C_k λ_k^t`` with ``λ = exp(-exp(log_decay) + i frequency)``, which all channels share: the poles
    themselves are the weights. Their common table of powers makes many modes cheap.

    Weights: ``log_decay`` and ``frequency`` ``(R, m)``, trained at a rate of at most 1e-3
    (:func:`hyena.param_groups`); ``C`` ``(R, G, m, 2)``, real and imaginary parts. Frequencies start evenly over half
    the circle (the other half are the conjugates, which the real part has with them), decays at random, ``C`` as
    complex normal numbers, scaled so that each filter has norm 1.

    Args:
        channels: G.
        l_max: most taps that may be asked for.
        num_filters: F.
        modes: m.
        decay: range of the decays a position, which start evenly spread in it on a logarithmic scale.
        causal: lags from 0 on; otherwise two-sided, the taps of lags ``-1, -2, …`` from weights of their own.

    Raises:
        ValueError: a size below 1, or a ``decay`` that is no range.
    """

    linear = "C"
    by_channel = ("C",)
    dynamics = ("log_decay", "frequency")
    log_decay: Tensor
    frequency: Tensor

    def __init__(
        self,
        channels: int,
        l_max: int,
        num_filters: int = 1,
        *,
        modes: int = 64,
        decay: Sequence[float] = (1e-3, 1e-1),
        causal: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(channels, l_max, num_filters, modes, causal=causal)
        self.decay = check_range("decay", decay)
        poles = (self._rows, modes)
        shapes: dict[str, tuple[int, ...]] = {"log_decay": poles, "frequency": poles}
        self._make(shapes | {"C": (self._rows, channels, modes, 2)}, device, dtype)

    def _start(self, weights: Weights) -> Weights:
        log_uniform(weights["log_decay"], self.decay)
        weights["frequency"].copy_(torch.arange(self.num_modes) * (math.pi / self.num_modes))
        weights["C"].normal_(std=0.5**0.5)
        return weights

    def _terms(self, weights: Weights) -> Terms:
        decay, angle = weights["log_decay"].exp()[:, None], weights["frequency"][:, None]
        return Terms(decay, angle, torch.view_as_complex(weights["C"].contiguous()))

    def _stretch(self, factor: float) -> None:
        fill(self.log_decay, whole(self.log_decay) - math.log(factor))
        fill(self.frequency, whole(self.frequency) / factor)
