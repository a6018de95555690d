"""S4D: diagonal state spaces (Gu, Gupta, Goel and Ré 2022, arXiv 2206.11893).

``x' = A x + B u``, ``y = Re(C x)`` with diagonal ``A`` and ``B = 1``, read at steps ``Δ``.

Dimensions: F filters, R rows of weights (F, two-sided 2 F), G filter channels, m modes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from hyena.filters._initial import fill, whole
from hyena.filters.diagonal import DiagonalFilter, Terms, Weights, check_range, expm1, log_uniform

STARTS = ("lin", "inv", "real")
DISCRETISATIONS = ("zoh", "bilinear")

# A bilinear pole that is zero has no logarithm; one of this size is zero after a tap in any dtype.
_TINY = 1e-30


class S4D(DiagonalFilter):
    """The filter of S4D, a diagonal state space with one step size a channel (arXiv 2206.11893, equation 3, table 1).

    ``h_t = 2 sum_k Re(C_k B_k p_k^t)`` with, for ``A_k = -exp(log_decay_k) + i frequency_k`` and ``Δ = exp(log_dt)``,

    - ``"zoh"``: ``p = exp(Δ A)``, ``B = (exp(Δ A) - 1) / A``;
    - ``"bilinear"``: ``p = (1 + Δ A / 2) / (1 - Δ A / 2)``, ``B = Δ / (1 - Δ A / 2)``.

    Each mode stands for itself and its conjugate, so that ``m`` modes are a state of size ``2 m``. A real filter
    (``start="real"``) has real poles and weights, ``m`` states, and no factor 2. Steps are a recurrence of ``m``
    states, exact, at constant cost.

    Weights: ``log_dt`` ``(R, G)``, ``log_decay`` and ``frequency`` ``(R, G, m)``, ``C`` ``(R, G, m, 2)``, real and
    imaginary parts (real filters: ``(R, G, m)``, and no ``frequency``). All but ``C`` train at a rate of at most 1e-3
    (:func:`hyena.param_groups`), as the paper's do. ``C`` starts as normal numbers, scaled so that each filter has norm
    1; the released code leaves them as they are.

    Args:
        channels: G.
        l_max: most taps that may be asked for.
        num_filters: F.
        modes: m.
        start: of ``A``: ``"lin"``, ``-1/2 + i pi k``; ``"inv"``, ``-1/2 + i N/pi (N/(2k+1) - 1)`` with ``N = 2 m``;
            ``"real"``, ``-(k + 1)``.
        discretisation: ``"zoh"`` or ``"bilinear"``.
        dt: range of the step sizes, which start evenly spread in it on a logarithmic scale.
        causal: lags from 0 on; otherwise two-sided, the taps of lags ``-1, -2, …`` from weights of their own.

    Raises:
        ValueError: a size below 1, an unknown ``start`` or ``discretisation``, a ``dt`` that is no range.
    """

    linear = "C"
    by_channel = ("log_dt", "log_decay", "frequency", "C")
    stretch_keeps_sums = True
    dynamics = ("log_dt", "log_decay", "frequency")
    log_dt: Tensor

    def __init__(
        self,
        channels: int,
        l_max: int,
        num_filters: int = 1,
        *,
        modes: int = 32,
        start: str = "lin",
        discretisation: str = "zoh",
        dt: Sequence[float] = (1e-3, 1e-1),
        causal: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(channels, l_max, num_filters, modes, causal=causal)
        for name, value, known in (("start", start, STARTS), ("discretisation", discretisation, DISCRETISATIONS)):
            if value not in known:
                raise ValueError(f"{name} must be one of {', '.join(map(repr, known))}, got {value!r}")
        self.start, self.discretisation, self.dt = start, discretisation, check_range("dt", dt)
        each = (self._rows, channels, modes)
        shapes: dict[str, tuple[int, ...]] = {"log_dt": each[:2], "log_decay": each}
        if start == "real":
            self.register_parameter("frequency", None)
            shapes["C"] = each
        else:
            shapes |= {"frequency": each, "C": (*each, 2)}
        self._make(shapes, device, dtype)

    def _start(self, weights: Weights) -> Weights:
        log_uniform(weights["log_dt"], self.dt)
        k = torch.arange(self.num_modes, dtype=torch.float64, device=weights["log_dt"].device)
        weights["log_decay"].copy_((k + 1).log() if self.start == "real" else torch.full_like(k, math.log(0.5)))
        if self.start != "real":
            size = 2 * self.num_modes
            inv = size / math.pi * (size / (2 * k + 1) - 1)
            weights["frequency"].copy_(math.pi * k if self.start == "lin" else inv)
        weights["C"].normal_()
        return weights

    def _terms(self, weights: Weights) -> Terms:
        dt, rate = weights["log_dt"].exp()[..., None], weights["log_decay"].exp()
        frequency, c = weights.get("frequency"), weights["C"]
        if frequency is not None:
            c = 2 * torch.view_as_complex(c.contiguous())
        if self.discretisation == "zoh":
            if frequency is None:
                return Terms(dt * rate, None, c * -torch.expm1(-dt * rate) / rate)
            step = expm1(-dt * rate, dt * frequency) / torch.complex(-rate, frequency)
            return Terms(dt * rate, dt * frequency, c * step)
        # p = (1 + z) / (1 - z), z = Δ A / 2: its logarithm from the two moduli and the two angles.
        x, y = -0.5 * dt * rate, None if frequency is None else 0.5 * dt * frequency
        if y is None:  # a real pole may be negative: then it turns by pi a position
            y = torch.zeros_like(x)
            c = torch.complex(c, torch.zeros_like(c))
        above = (1 + x).square() + y.square()
        # log(|1 - z|^2 / |1 + z|^2) = log1p(-4 x / |1 + z|^2), exact for small steps.
        decay = 0.5 * torch.log1p(-4 * x / above.clamp_min(_TINY))
        angle = torch.atan2(y, 1 + x) + torch.atan2(y, 1 - x)
        return Terms(decay, angle, c * dt / torch.complex(1 - x, -y))

    def _stretch(self, factor: float) -> None:
        fill(self.log_dt, whole(self.log_dt) - math.log(factor))

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, start={self.start!r}, discretisation={self.discretisation!r}"
