"""What diagonal state-space filters share: taps, two directions, modes, a start at unit norm.

Dimensions: F filters, R rows of weights (F, two-sided 2 F), G filter channels, m modes.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from hyena import ops
from hyena.filters._exponentials import norm, response
from hyena.filters._initial import empty, fill, to_unit_norm
from hyena.filters.base import Filter, Modes, check_extension, check_sizes, is_number

Weights = dict[str, Tensor]


class Terms(NamedTuple):
    """``h_t = sum_k Re(weight_k exp(-decay_k + i angle_k)^t)`` for ``t >= 0``; ``(R, G, m)`` each.

    Attributes:
        decay: positive; ``(R, 1, m)``, as the angle, if channels share it.
        angle: None where all poles are real and positive; ``weight`` is real then, else complex.
        weight: what the powers are multiplied by.
    """

    decay: Tensor
    angle: Tensor | None
    weight: Tensor


class DiagonalFilter(Filter):
    """Base of filters that are sums of ``m`` decaying exponentials: a subclass says which, from its weights.

    A subclass makes its weights by :meth:`_make`, and defines :meth:`_terms` and :meth:`_start`. Taps cost
    ``O(R G m K)`` products, as two tables of ``sqrt(K)`` powers, and memory for them and ``4 m sqrt(K)`` complex
    numbers a channel (arXiv 2206.11893, section 3.2, has the same product with a table of ``m K``). Two-sided filters
    have a second row of weights, whose taps ``0, 1, …`` are those of lags ``-1, -2, …``.
    """

    linear: str
    """The weight that taps are proportional to: it is scaled when the filter is initialised."""

    by_channel: tuple[str, ...] = ()
    """The weights ``(R, G, …)``; others all channels share."""

    _names: tuple[str, ...]

    def __init__(self, channels: int, l_max: int, num_filters: int, modes: int, *, causal: bool) -> None:
        super().__init__(channels, l_max, num_filters, causal=causal)
        check_sizes(modes=modes)
        self.num_modes = modes

    def _make(self, shapes: dict[str, tuple[int, ...]], device: Any, dtype: torch.dtype | None) -> None:
        """Parameters of these shapes, initialised."""
        self._names = tuple(shapes)
        for name, shape in shapes.items():
            setattr(self, name, nn.Parameter(torch.empty(shape, device=device, dtype=self.weight_dtype(dtype))))
        self.reset_parameters()

    @abstractmethod
    def _terms(self, weights: Weights) -> Terms:
        """Poles and their weights, from weights by name, all float32 or float64."""

    @abstractmethod
    def _start(self, weights: Weights) -> Weights:
        """Initial values, in place of the uninitialised ``weights``; the one named by ``linear`` in any scale."""

    def _weights(self) -> Weights:
        dtype = ops.compute_dtype(getattr(self, self._names[0]))
        return {name: getattr(self, name).to(dtype) for name in self._names}

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Starts again; every filter has l2 norm 1 then."""
        start = self._start({name: empty(getattr(self, name)) for name in self._names})
        scale = start[self.linear]
        if not scale.is_meta:
            lengths = norm(*self._terms({name: t.to(ops.compute_dtype(t)) for name, t in start.items()}), self._span())
            factor = to_unit_norm(lengths.square(), self.num_filters)
            start[self.linear] = scale * factor.view(*factor.shape, *[1] * (scale.dim() - 2)).to(scale.dtype)
        for name, value in start.items():
            fill(getattr(self, name), value)

    def _span(self) -> int:
        return self.l_max if self.support is None else min(self.l_max, self.support)

    def forward(self, length: int) -> Tensor:
        """Taps ``(F, n, G)``, two-sided ``(F, 2 n - 1, G)``, with ``n = length``, or ``min(length, support)``.

        Raises:
            ValueError: ``length`` is more than ``l_max``.
        """
        self.check_length(length)
        n = length if self.support is None else min(length, self.support)
        weights = self._weights()
        with ops.without_autocast(weights[self.linear].device):
            return self._both_directions(response(*self._terms(weights), n).transpose(1, 2))

    def channel_axes(self) -> dict[str, int]:
        """See :meth:`Filter.channel_axes`."""
        return {name: 1 for name in self._names if name in self.by_channel}

    def modes(self) -> Modes | None:
        """Poles and residues, float64 if the weights are, else float32; None of two-sided, cut and
        normalised filters.
        """
        if not self.causal or self.support is not None or self.depends_on_length:
            return None
        decay, angle, weight = self._terms(self._weights())
        decay = decay.expand(weight.shape)
        if angle is None:
            return Modes(decay, torch.zeros_like(decay), weight * torch.exp(-decay), weight.sum(-1))
        angle = angle.expand(weight.shape)
        residue = weight * torch.polar(torch.exp(-decay), angle)
        return Modes(decay, angle, residue, weight.real.sum(-1))

    @torch.no_grad()
    def extend(self, l_max: int, mode: str = "continue") -> None:
        """See :meth:`Filter.extend`. ``"stretch"`` slows every mode down by ``new / old``."""
        check_extension(l_max, mode)
        if mode == "stretch":
            self._stretch(l_max / self.l_max)
        self.l_max = l_max

    def _stretch(self, factor: float) -> None:
        """Slows every mode down."""
        raise ValueError(
            f"a {type(self).__name__} made for l_max={self.l_max} cannot be stretched to "
            f"l_max={round(factor * self.l_max)}; use mode='continue', which leaves every tap as it is"
        )

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, modes={self.num_modes}"


def check_range(name: str, low_high: Sequence[float]) -> tuple[float, float]:
    """Raises ValueError for what is no range of positive numbers."""
    pair = tuple(low_high) if isinstance(low_high, Iterable) else ()
    if len(pair) != 2 or not all(is_number(end) for end in pair) or not 0 < pair[0] <= pair[1] < float("inf"):
        raise ValueError(f"{name} must be two positive numbers in order, got {low_high!r}: (0.001, 0.1), say")
    return pair


def log_uniform(t: Tensor, low_high: tuple[float, float]) -> Tensor:
    """Fills ``t`` with logarithms of numbers that are spread evenly on a logarithmic scale."""
    low, high = (math.log(x) for x in low_high)  # not as tensors: the default device may be meta
    return t.uniform_(low, high) if high > low else t.fill_(low)


def expm1(x: Tensor, y: Tensor) -> Tensor:
    """``exp(x + i y) - 1``, without the cancellation where both are small."""
    half = torch.sin(0.5 * y)
    return torch.complex(torch.expm1(x) * torch.cos(y) - 2 * half * half, torch.exp(x) * torch.sin(y))
