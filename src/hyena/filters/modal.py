"""Filters in modal form, sums of decaying oscillations (Laughing Hyena, arXiv 2310.18780, eq. 3.1).

``h_0`` is free, and ``h_t = sum_k Re(R_k p_k^(t-1))`` for ``t >= 1``: the impulse response of ``m`` states
``s_k <- p_k s_k + x``, so that a step costs the same at any position.

Dimensions: F filters, G filter channels, K taps, m modes.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from hyena import ops
from hyena.filters._exponentials import norm, response
from hyena.filters._initial import empty, fill
from hyena.filters.base import Filter, Modes, check_extension, check_flags, check_sizes


def _modes(
    log_decay: Tensor, angle: Tensor | None, residue: Tensor, first: Tensor, growth: Tensor | None = None
) -> Modes:
    """The poles and residues of weights; real ones without ``angle``."""
    dtype = ops.compute_dtype(log_decay)
    decay, residue, first = log_decay.to(dtype).exp(), residue.to(dtype), first.to(dtype)
    if growth is not None:
        decay = decay - growth.to(dtype)
    if angle is None:
        return Modes(decay, torch.zeros_like(decay), residue, first)
    return Modes(decay, angle.to(dtype), torch.view_as_complex(residue.contiguous()), first)


def _norm(modes: Modes, length: int) -> Tensor:
    """The l2 norms ``(F, G)`` of the first ``length`` taps, in float64."""
    energy = modes.first.double().square()
    if length > 1:
        energy = energy + norm(modes.decay, modes.angle, modes.residue, length - 1).square()
    return energy.clamp_min(1e-24).sqrt()


class ModalFilter(Filter):
    """A causal filter that is a sum of decaying oscillations: ``h_t = sum_k Re(R_k p_k^(t-1))``, ``h_0`` free.

    Operators that have one step in time and memory that do not depend on the context. No pole can leave the unit disc:
    its modulus is ``exp(-exp(log_decay))``, or ``exp(growth - exp(log_decay))`` in filters that were given poles
    outside of it. :func:`hyena.distill` fits these to other filters; trained from the start, time constants begin
    evenly spaced on a logarithmic scale up to ``l_max``, frequencies at random, and each filter with l2 norm 1.

    Args:
        channels: G.
        l_max: most taps that may be asked for; what the filter was fitted to, if it was.
        num_filters: F.
        modes: m.
        causal: must be True.
        real: poles on the positive real axis only (no ``angle``, a real ``residue``): sums of decaying exponentials,
            whose recurrence needs no complex states. Evo 2's long filters are these.
        growth: there is a buffer ``growth`` ``(F, G, m)``, zero at the start, that moves poles outwards: for filters
            that were trained without keeping theirs inside the unit disc.

    Raises:
        ValueError: a size below 1, or ``causal=False``.
    """

    error: Tensor
    growth: Tensor | None

    def __init__(
        self,
        channels: int,
        l_max: int,
        num_filters: int = 1,
        *,
        modes: int = 16,
        causal: bool = True,
        real: bool = False,
        growth: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(channels, l_max, num_filters, causal=causal)
        check_sizes(modes=modes)
        check_flags(real=real, growth=growth)
        if not causal:
            raise ValueError("modal filters are recurrences over the past: causal=False is not possible")
        self.num_modes, self.real = modes, real
        dtype, shape = self.weight_dtype(dtype), (num_filters, channels, modes)
        self.log_decay = nn.Parameter(torch.empty(shape, device=device, dtype=dtype))
        if real:
            self.register_parameter("angle", None)
        else:
            self.angle = nn.Parameter(torch.empty(shape, device=device, dtype=dtype))
        self.residue = nn.Parameter(torch.empty(shape if real else (*shape, 2), device=device, dtype=dtype))
        self.first = nn.Parameter(torch.empty(num_filters, channels, device=device, dtype=dtype))
        self.register_buffer("growth", torch.zeros(shape, device=device, dtype=dtype) if growth else None)
        # Relative l2 error of each filter when it was fitted.
        self.register_buffer("error", torch.empty(num_filters, channels, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Starts again; see the class."""
        # Time constants from 1 position to l_max.
        rates = torch.linspace(-math.log(max(self.l_max, 2)), 0.0, self.num_modes)
        log_decay = empty(self.log_decay).copy_(rates)
        angle = None if self.angle is None else empty(self.angle).uniform_(0.0, math.pi)
        residue, first = empty(self.residue).normal_(), empty(self.first).normal_()
        size = _norm(_modes(log_decay, angle, residue, first), self.l_max).to(first.dtype)
        fill(self.log_decay, log_decay)
        if angle is not None:
            fill(self.angle, angle)
        fill(self.residue, residue / (size[..., None] if self.real else size[..., None, None]))
        fill(self.first, first / size)
        fill(self.error, torch.zeros_like(first))
        if self.growth is not None:
            fill(self.growth, torch.zeros_like(log_decay))

    def modes(self) -> Modes:
        """Poles and residues, float64 if the weights are, else float32."""
        return _modes(self.log_decay, self.angle, self.residue, self.first, self.growth)

    def channel_axes(self) -> dict[str, int]:
        """See :meth:`Filter.channel_axes`."""
        names = ("log_decay", "angle", "residue", "first", "growth", "error")
        return {name: 1 for name in names if getattr(self, name) is not None}

    def forward(self, length: int) -> Tensor:
        """Taps ``(F, length, G)``.

        Raises:
            ValueError: ``length`` is more than ``l_max``.
        """
        self.check_length(length)
        with ops.without_autocast(self.log_decay.device):
            decay, angle, residue, first = self.modes()
            h = first[..., None]
            if length > 1:
                h = torch.cat([h, response(decay, angle, residue, length - 1)], dim=-1)
        return h.transpose(1, 2)

    @torch.no_grad()
    def extend(self, l_max: int, mode: str = "continue") -> None:
        """See :meth:`Filter.extend`. ``"stretch"`` slows every mode down by ``new / old``."""
        check_extension(l_max, mode)
        if mode == "stretch":
            self.log_decay.sub_(math.log(l_max / self.l_max))
            for turned in (self.angle, self.growth):
                if turned is not None:
                    turned.mul_(self.l_max / l_max)
        self.l_max = l_max

    def extra_repr(self) -> str:
        error = "" if self.error.is_meta else f", largest relative error {self.error.max().item():.1e}"
        return f"approximate, modes={self.num_modes}, real={self.real}, {super().extra_repr()}{error}"
