"""S4: state spaces that are diagonal plus low rank (Gu, Goel and Ré 2021, arXiv 2111.00396).

Dimensions: F filters, R rows of weights (F, two-sided 2 F), G filter channels, m pairs of conjugate modes, K taps.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from hyena import ops
from hyena.filters._hippo import legs
from hyena.filters._initial import empty, fill, whole
from hyena.filters._tied import TiedToLength
from hyena.filters.base import check_sizes
from hyena.filters.diagonal import check_range, log_uniform

# Entries (channels x modes x frequencies) of the Cauchy product at a time: arrays of 1 MB in float32, which stay in a
# processor's cache; on other devices of 64 MB, so that there are few calls. They are computed again for the gradient.
_CAUCHY_ENTRIES = 1 << 18
_CAUCHY_ENTRIES_ELSEWHERE = 1 << 24

# Taps that the norm is found from at the start.
_NORM_TAPS = 4096


class S4(TiedToLength):
    """The filter of S4: HiPPO-LegS as normal plus low rank, by its Cauchy kernel (arXiv 2111.00396, theorem 3).

    ``x' = (Λ - P P*) x + B u``, ``y = Re(C x)``, in ``m`` modes and their conjugates, at steps ``Δ`` by the bilinear
    rule. The transform of all ``l_max`` taps is computed at its frequencies, where the resolvent of ``Λ - P P*`` is
    sums of ``1 / (s - Λ_k)``, and transformed back. A call costs ``O(G m l_max)`` whatever the length asked for; the
    sums are made in pieces of 256K terms (16M on a GPU). ``C`` stands for ``C (1 - A^l_max)``, as in the paper (section
    3.3): the length is saved with the weights, which are converted for another. Steps are in tiles: the
    eigenvectors of LegS are too close to each other for a recurrence of single modes, in float64 too.

    Weights: ``log_decay``, ``frequency`` ``(R, m)``, ``P``, ``B`` ``(R, m, 2)``, which channels share; ``log_dt``
    ``(R, G)``; ``C`` ``(R, G, m, 2)``. All but ``C`` train at a rate of at most 1e-3 (:func:`hyena.param_groups`).
    ``C`` starts as complex normal numbers, scaled so that each filter has norm 1.

    Args:
        channels: G.
        l_max: most taps that may be asked for.
        num_filters: F.
        modes: m, half the size of the state.
        dt: range of the step sizes, which start evenly spread in it on a logarithmic scale.
        causal: lags from 0 on; otherwise two-sided, the taps of lags ``-1, -2, …`` from weights of their own.

    Raises:
        ValueError: a size below 1, or a ``dt`` that is no range.
    """

    dynamics = ("log_dt", "log_decay", "frequency", "P", "B")

    def __init__(
        self,
        channels: int,
        l_max: int,
        num_filters: int = 1,
        *,
        modes: int = 32,
        dt: Sequence[float] = (1e-3, 1e-1),
        causal: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(channels, l_max, num_filters, causal=causal)
        check_sizes(modes=modes)
        self.num_modes, self.dt = modes, check_range("dt", dt)
        at: dict[str, Any] = {"device": device, "dtype": self.weight_dtype(dtype)}
        rows = num_filters * (1 if causal else 2)
        self.log_dt = nn.Parameter(torch.empty(rows, channels, **at))
        self.log_decay = nn.Parameter(torch.empty(rows, modes, **at))
        self.frequency = nn.Parameter(torch.empty(rows, modes, **at))
        self.P = nn.Parameter(torch.empty(rows, modes, 2, **at))
        self.B = nn.Parameter(torch.empty(rows, modes, 2, **at))
        self.C = nn.Parameter(torch.empty(rows, channels, modes, 2, **at))
        self._tie(device, dtype)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Starts again; every filter has l2 norm 1 then, of its first 4096 taps."""
        self._save_length()
        frequency, p, b = legs(self.num_modes)
        w = {name: empty(t) for name, t in self.named_parameters()}
        log_uniform(w["log_dt"], self.dt)
        w["log_decay"].fill_(math.log(0.5))
        w["frequency"].copy_(frequency)
        w["P"].copy_(torch.view_as_real(p))
        w["B"].copy_(torch.view_as_real(b))
        w["C"].normal_(std=0.5**0.5)
        if not self.C.is_meta:
            h = self._taps({name: t.to(ops.compute_dtype(t)) for name, t in w.items()}, min(self.l_max, _NORM_TAPS))
            energy = h.square().sum(-1).view(-1, self.num_filters, self.channels).sum(0)
            norm = energy.clamp_min(1e-24).sqrt().repeat(w["C"].size(0) // self.num_filters, 1)
            w["C"] /= norm[..., None, None].to(w["C"].dtype)
        for name, t in w.items():
            fill(getattr(self, name), t)

    def forward(self, length: int) -> Tensor:
        """Taps ``(F, length, G)``, two-sided ``(F, 2 * length - 1, G)``.

        Raises:
            ValueError: ``length`` is more than ``l_max``.
        """
        self.check_length(length)
        dtype = ops.compute_dtype(self.C)
        w = {name: getattr(self, name).to(dtype) for name in ("log_dt", "log_decay", "frequency", "P", "B", "C")}
        with ops.without_autocast(self.C.device):
            h = self._taps(w, self.l_max)[..., :length].transpose(1, 2)
        if self.causal:
            return h
        return torch.cat([h[self.num_filters :, :-1].flip(1), h[: self.num_filters]], dim=1)

    def _taps(self, w: dict[str, Tensor], length: int) -> Tensor:
        """``(R, G, length)`` of weights that belong to that length."""
        dt = w["log_dt"].exp()[..., None]
        p, b, c = (torch.view_as_complex(w[name].contiguous()) for name in "PBC")
        z = torch.complex(-dt * w["log_decay"].exp()[:, None], dt * w["frequency"][:, None])  # (R, G, m)
        # Numerators of the four sums, C R B, C R P, P* R B, P* R P with the resolvent R.
        p, b = p[:, None], b[:, None]
        tops = [t.expand(z.shape) for t in (c * b, c * p, p.conj() * b, p.conj() * p)]
        coefficients = torch.stack([part for v in tops for part in (v.real, (v * z.conj()).real)], dim=2)
        half = torch.arange(length // 2 + 1, device=z.device, dtype=dt.dtype) * (math.pi / length)
        entries = _CAUCHY_ENTRIES if z.device.type == "cpu" else _CAUCHY_ENTRIES_ELSEWHERE
        step = max(1, entries // z.numel())
        pieces = half.split(step)
        again = len(pieces) > 1 and torch.is_grad_enabled() and not torch.compiler.is_compiling()
        args = (z.real.square() + z.imag.square(), z.real, dt, coefficients)
        spectrum = [
            checkpoint(_transform, *args, at, use_reentrant=False) if again else _transform(*args, at) for at in pieces
        ]
        return torch.fft.irfft(torch.cat(spectrum, dim=-1), n=length)

    @torch.no_grad()
    def _convert(self, old: int, new: int) -> None:
        """``C (1 - A^old)`` to ``C (1 - A^new)``, with dense matrices in float64."""
        if self.C.is_meta:
            return
        w = {name: whole(t).double() for name, t in self.named_parameters()}
        p, c = (torch.view_as_complex(w[name]) for name in "PC")
        poles = torch.complex(-w["log_decay"].exp(), w["frequency"])
        full = [torch.cat([t, t.conj()], dim=-1) for t in (poles, p, c)]
        a = torch.diag_embed(full[0]) - full[1][..., None] * full[1].conj()[..., None, :]  # (R, 2 m, 2 m)
        eye = torch.eye(a.size(-1), dtype=a.dtype, device=a.device)
        for r, g in torch.cartesian_prod(torch.arange(c.size(0)), torch.arange(c.size(1))).tolist():
            half = 0.5 * w["log_dt"][r, g].exp() * a[r]
            step = torch.linalg.solve(eye - half, eye + half)
            before, after = (eye - torch.linalg.matrix_power(step, n) for n in (old, new))
            c[r, g] = (torch.linalg.solve(before.mT, full[2][r, g]) @ after)[: c.size(-1)]
        fill(self.C, torch.view_as_real(c).to(self.C.dtype))

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, modes={self.num_modes}"


def _transform(square: Tensor, rate: Tensor, dt: Tensor, coefficients: Tensor, half: Tensor) -> Tensor:
    """The transform of the taps at frequencies ``2 half`` (n,): ``(R, G, m)`` and ``(R, G, 8, m)`` -> ``(R, G, n)``.

    The bilinear rule reads the resolvent at ``s = 2i tan(half) / Δ``. Both conjugates together are
    ``v / (s - λ) + conj = Δ cos (4i sin Re v - 2 cos Re(v conj(z))) / Q`` with ``z = Δ λ`` and
    ``Q = |z|² cos² - 4 sin² - 4i sin cos Re z``: no tangent, and no zero on the circle.
    """
    sin, cos = half.sin(), half.cos()
    u, w = torch.addcmul(-4 * sin * sin, square[..., None], cos * cos), rate[..., None] * (4 * sin * cos)
    scale = torch.addcmul(u * u, w, w).reciprocal()
    sums = torch.complex(coefficients @ (u * scale), coefficients @ (w * scale))  # (R, G, 8, n)
    s = dt[..., None] * (4j * sin * sums[:, :, ::2] - 2 * cos * sums[:, :, 1::2])
    s00, s01, s10, s11 = s.unbind(2)
    return torch.polar(torch.ones_like(half), half) * (s00 - cos * s01 * s10 / (1 + cos * s11))
