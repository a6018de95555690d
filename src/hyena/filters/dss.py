"""DSS: diagonal state spaces (Gupta, Gu and Berant 2022, arXiv 2203.14343).

Dimensions: F filters, R rows of weights (F, two-sided 2 F), G filter channels, m modes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from hyena import ops
from hyena.filters._exponentials import response
from hyena.filters._hippo import legs
from hyena.filters._initial import fill, whole
from hyena.filters.base import check_finite, check_flags
from hyena.filters.diagonal import DiagonalFilter, Terms, Weights, check_range, expm1, log_uniform

VERSIONS = ("softmax", "exp", "clip")

# The released code's least decay of "clip", and what "softmax" adds to a squared modulus before its reciprocal.
LEAST_DECAY = 1e-4
EPSILON = 1e-7


class DSS(DiagonalFilter):
    """The filter of DSS, a diagonal state space whose poles all channels share (arXiv 2203.14343, proposition 1).

    With ``z = (Δ_re Re Λ) + i (Δ_im Im Λ)``, a step size for real and one for imaginary parts in each channel,

    - ``"exp"``: ``h_t = Re sum_k W_k (e^z - 1) / Λ e^(z t)``, ``Re Λ = -exp(log_decay)``;
    - ``"clip"``: the same, ``Re Λ = min(decay_re, -1e-4)`` with a plain weight;
    - ``"softmax"``: ``h_t = Re sum_k W_k / Λ softmax_t(z t)`` over the row: real parts may have either sign, and modes
      that grow are those that look at the row's beginning. Taps depend on the length (``depends_on_length``): it
      cannot be stepped, and padded and packed rows meet the taps of the batch's longest row.

    In the softmax ``1 / x`` is ``conj(x) / (|x|² + epsilon)``, as released. ``W`` starts as complex normal numbers,
    scaled so that each filter has norm 1; ``Λ`` as the upper half of the spectrum of HiPPO-LegS's normal part. GSS
    (Mehta et al. 2022, arXiv 2206.13947) is ``"exp"`` with ``dt=None`` and ``log_frequency=True``.

    Weights: ``log_dt`` ``(R, G, 2)``; ``decay``, which is ``log(-Re Λ)`` in ``"exp"`` and ``Re Λ`` else, and
    ``frequency`` ``(R, m)``; ``W`` ``(R, G, m, 2)``, real and imaginary parts. All but ``W`` train at a rate of at most
    1e-3 (:func:`hyena.param_groups`).

    Args:
        channels: G.
        l_max: most taps that may be asked for.
        num_filters: F.
        modes: m.
        version: ``"softmax"``, ``"exp"`` or ``"clip"``.
        scale: whether ``W`` is multiplied by ``(e^z - 1) / Λ``; always in ``"softmax"``.
        dt: range of the step sizes, which start evenly spread in it on a logarithmic scale; None: 1, and no weight.
        log_frequency: ``frequency`` is the logarithm of ``Im Λ``.
        epsilon: see above; of ``"softmax"`` alone.
        causal: lags from 0 on; otherwise two-sided, the taps of lags ``-1, -2, …`` from weights of their own.

    Raises:
        ValueError: a size below 1, an unknown ``version``, ``"softmax"`` with ``scale=False``, a ``dt`` that is no
            range, a negative ``epsilon``.
    """

    linear = "W"
    by_channel = ("log_dt", "W")
    stretch_keeps_sums = True
    dynamics = ("log_dt", "decay", "frequency")
    log_dt: Tensor

    def __init__(
        self,
        channels: int,
        l_max: int,
        num_filters: int = 1,
        *,
        modes: int = 64,
        version: str = "exp",
        scale: bool = True,
        dt: Sequence[float] | None = (1e-3, 1e-1),
        log_frequency: bool = False,
        epsilon: float | None = None,
        causal: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(channels, l_max, num_filters, modes, causal=causal)
        check_flags(scale=scale, log_frequency=log_frequency)
        if version not in VERSIONS:
            raise ValueError(f"version must be one of {', '.join(map(repr, VERSIONS))}, got {version!r}")
        if version == "softmax" and not scale:
            raise ValueError("version='softmax' divides by a sum, so scale=False means nothing: use 'exp' or 'clip'")
        if epsilon is not None and version != "softmax":
            raise ValueError(
                f"epsilon={epsilon} is of version='softmax', which divides by sums; leave it out in {version!r}"
            )
        epsilon = EPSILON if epsilon is None else epsilon
        check_finite(epsilon=epsilon)
        if epsilon < 0:
            raise ValueError(f"epsilon must be finite and not negative, got {epsilon}")
        self.version, self.scale, self.log_frequency, self.epsilon = version, scale, log_frequency, epsilon
        self.depends_on_length = version == "softmax"
        self.dt = None if dt is None else check_range("dt", dt)
        shapes: dict[str, tuple[int, ...]] = {"decay": (self._rows, modes), "frequency": (self._rows, modes)}
        if dt is None:
            self.register_parameter("log_dt", None)
        else:
            shapes["log_dt"] = (self._rows, channels, 2)
        self._make(shapes | {"W": (self._rows, channels, modes, 2)}, device, dtype)

    def _start(self, weights: Weights) -> Weights:
        frequency = legs(self.num_modes)[0]
        weights["frequency"].copy_(frequency.log() if self.log_frequency else frequency)
        weights["decay"].fill_(math.log(0.5) if self.version == "exp" else -0.5)
        if self.dt is not None:
            log_uniform(weights["log_dt"], self.dt)
        weights["W"].normal_(std=0.5**0.5)
        return weights

    def _exponents(self, w: Weights) -> tuple[Tensor, Tensor, Tensor]:
        """``Λ`` ``(R, 1, m)``, and ``z`` as two real numbers, ``(R, G, m)``, or ``(R, 1, m)`` without step sizes."""
        re, im = w["decay"][:, None], w["frequency"][:, None]
        if self.version == "exp":
            re = -re.exp()
        elif self.version == "clip":
            re = re.clamp_max(-LEAST_DECAY)
        if self.log_frequency:
            im = im.exp()
        at = torch.complex(re, im)
        if "log_dt" not in w:
            return at, re, im
        dt = w["log_dt"].exp()
        return at, dt[..., :1] * re, dt[..., 1:] * im

    def _terms(self, weights: Weights) -> Terms:
        at, re, im = self._exponents(weights)
        c = torch.view_as_complex(weights["W"].contiguous())
        if self.version == "softmax":  # of the longest row, where no mode grows: for the start
            return Terms(-re, im, c * self._share(at, re, im, self.l_max))
        if self.scale:
            c = c * expm1(re, im) / at
        return Terms(-re, im, c)

    def _share(self, at: Tensor, re: Tensor, im: Tensor, length: int) -> Tensor:
        """``1 / (Λ sum_t e^(z t))`` over ``length`` positions, for modes that do not grow."""
        below = at * expm1(re * length, im * length)
        return expm1(re, im) * below.conj() / (below.real.square() + below.imag.square() + self.epsilon)

    def forward(self, length: int) -> Tensor:
        """Taps ``(F, length, G)``, two-sided ``(F, 2 * length - 1, G)``.

        Raises:
            ValueError: ``length`` is more than ``l_max``.
        """
        if self.version != "softmax":
            return super().forward(length)
        self.check_length(length)
        weights = self._weights()
        with ops.without_autocast(weights["W"].device):
            at, re, im = self._exponents(weights)
            # A mode that grows is one that falls, from the end of the row backwards.
            grows, sign = re > 0, torch.where(re > 0, -1, 1)
            re, im = sign * re, sign * im
            c = torch.view_as_complex(weights["W"].contiguous()) * self._share(at, re, im, length)
            back = response(-re, im, torch.where(grows, c, 0), length).flip(-1)
            h = response(-re, im, torch.where(grows, 0, c), length) + back
            return self._both_directions(h.transpose(1, 2))

    def _stretch(self, factor: float) -> None:
        if self.dt is None:
            super()._stretch(factor)
        fill(self.log_dt, whole(self.log_dt) - math.log(factor))

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, version={self.version!r}, scale={self.scale}"
