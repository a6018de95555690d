"""S4: state spaces that are diagonal plus low rank (Gu, Goel and Ré 2021, arXiv 2111.00396).

Dimensions: F filters, R rows of weights (F, two-sided 2 F), G filter channels, S = R G systems, m pairs of conjugate
modes, N = 2 m states, K taps.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from hyena import ops
from hyena.filters import _cauchy, _powers
from hyena.filters._hippo import legs
from hyena.filters._initial import empty, fill, to_unit_norm, whole
from hyena.filters._powers import power, rounds_products, squares
from hyena.filters._tied import TiedToLength
from hyena.filters.base import check_sizes
from hyena.filters.diagonal import check_range, log_uniform

# Entries of an array (systems x N x N, or systems x m x frequencies) at a time: 1 MB in float32, which stays in a
# processor's cache; on other devices 64 MB, so that there are few calls. They are computed again for the gradient.
_ENTRIES = 1 << 18
_ENTRIES_ELSEWHERE = 1 << 24

# Rows longer than m^2 log2(l_max) / 8 are cheaper by powers of the matrix than by Cauchy sums (measured on a Xeon).
_POWERS_FROM = 8

_WEIGHTS = ("log_dt", "log_decay", "frequency", "P", "B", "C")

# Taps that the norm is found from at the start.
_NORM_TAPS = 4096


class S4(TiedToLength):
    """The filter of S4: HiPPO-LegS as normal plus low rank (arXiv 2111.00396, theorem 3).

    ``x' = (Λ - P P*) x + B u``, ``y = Re(C x)``, in ``m`` modes and their conjugates, at steps ``Δ`` by the bilinear
    rule. ``C`` stands for ``C (1 - A^l_max)``, as in the paper (section 3.3): the length is saved with the weights,
    which are converted for another.

    There are two ways to the taps. In short rows the paper's: sums of ``1 / (s - Λ_k)`` at each of the row's
    frequencies, ``G m l_max`` of them. In long rows powers of the N x N matrix, which is squared ``log2(l_max)`` times:
    ``O(G (N^3 log l_max + N K))``, and errors do not grow, since it is a contraction. Either works on a few channels at
    a time, in arrays of 256K numbers (16M on a GPU), and needs no memory for ``m K`` numbers of all. Steps are in
    tiles: the eigenvectors of LegS are too close to each other for a recurrence of single modes, in float64 too.

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
        self.log_dt = nn.Parameter(torch.empty(self._rows, channels, **at))
        self.log_decay = nn.Parameter(torch.empty(self._rows, modes, **at))
        self.frequency = nn.Parameter(torch.empty(self._rows, modes, **at))
        self.P = nn.Parameter(torch.empty(self._rows, modes, 2, **at))
        self.B = nn.Parameter(torch.empty(self._rows, modes, 2, **at))
        self.C = nn.Parameter(torch.empty(self._rows, channels, modes, 2, **at))
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
            energy = self._taps(w, min(self.l_max, _NORM_TAPS)).square().sum(-1)
            w["C"] *= to_unit_norm(energy, self.num_filters)[..., None, None]
        for name, t in w.items():
            fill(getattr(self, name), t)

    def forward(self, length: int) -> Tensor:
        """Taps ``(F, length, G)``, two-sided ``(F, 2 * length - 1, G)``.

        Raises:
            ValueError: ``length`` is more than ``l_max``.
        """
        self.check_length(length)
        with ops.without_autocast(self.C.device):
            h = self._taps({name: getattr(self, name) for name in _WEIGHTS}, length).to(ops.compute_dtype(self.C))
        return self._both_directions(h.transpose(1, 2))

    def _taps(self, w: dict[str, Tensor], length: int) -> Tensor:
        """``(R, G, length)``."""
        powers = self.l_max * _POWERS_FROM > self.num_modes**2 * self.l_max.bit_length()
        systems = _systems(w, torch.float64 if powers and rounds_products() else ops.compute_dtype(self.C))
        each = (2 * self.num_modes) ** 2 if powers else self.num_modes * (self.l_max // 2 + 1)
        step = max(1, (_ENTRIES if self.C.device.type == "cpu" else _ENTRIES_ELSEWHERE) // each)
        pieces = list(zip(*(t.split(step) for t in systems), strict=True))
        find: Callable[..., Tensor] = _by_powers if powers else _by_sums
        if (powers or len(pieces) > 1) and torch.is_grad_enabled() and not torch.compiler.is_compiling():
            find = functools.partial(checkpoint, find, use_reentrant=False)
        taps = torch.cat([find(*piece, self.l_max, length) for piece in pieces])
        return taps.view(*w["log_dt"].shape, length)

    @torch.no_grad()
    def _convert(self, old: int, new: int) -> None:
        if self.C.is_meta:
            return
        dt, poles, p, b, c = _systems({name: whole(t) for name, t in self.named_parameters()}, torch.float64)
        matrix, _ = _discrete(dt, poles, p, b)
        rings = (power(squares(matrix, n), n) for n in (old, new))
        re, im = (torch.linalg.solve(next(rings), _row(c), left=False) @ next(rings))[:, 0].chunk(2, dim=1)
        fill(self.C, (0.5 * torch.stack([re, -im], dim=-1)).view_as(self.C).to(self.C.dtype))

    def channel_axes(self) -> dict[str, int]:
        """See :meth:`Filter.channel_axes`."""
        return {"log_dt": 1, "C": 1}

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, modes={self.num_modes}"


def _systems(w: dict[str, Tensor], dtype: torch.dtype) -> list[Tensor]:
    """``Δ`` ``(S, 1)`` and, complex, ``Λ``, ``P``, ``B`` and ``C`` ``(S, m)`` of all channels."""
    w = {name: t.to(dtype) for name, t in w.items()}
    poles = torch.complex(-w["log_decay"].exp(), w["frequency"])
    p, b, c = (torch.view_as_complex(w[name].contiguous()) for name in "PBC")
    shared = (t[:, None].expand_as(c).flatten(0, 1) for t in (poles, p, b))
    return [w["log_dt"].exp().view(-1, 1), *shared, c.flatten(0, 1)]


def _discrete(dt: Tensor, poles: Tensor, p: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """``A - 1`` ``(S, N, N)`` and ``B`` ``(S, N)`` by the bilinear rule; states are real parts, then imaginary ones.

    Both conjugates together are ``Λ - 2 q q^T`` in real numbers, ``q`` the parts of ``P``. What the rule inverts is so
    diagonal plus rank 1, as its inverse is (Sherman and Morrison).
    """
    inverse = 1 / (1 - 0.5 * dt * poles)
    right, left = inverse * p, inverse.conj() * p
    scale = dt / (1 + dt * (left.conj() * p).real.sum(1, keepdim=True))
    own = dt * poles * inverse
    re, im = torch.diag_embed(own.real), torch.diag_embed(own.imag)
    diagonal = torch.cat([torch.cat([re, -im], dim=2), torch.cat([im, re], dim=2)], dim=1)
    matrix = diagonal - 2 * (scale * _parts(right))[:, :, None] * _parts(left)[:, None]
    enter = inverse * b - scale * right * (left.conj() * b).real.sum(1, keepdim=True)
    return matrix, dt * _parts(enter)


def _parts(x: Tensor) -> Tensor:
    return torch.cat([x.real, x.imag], dim=1)


def _row(c: Tensor) -> Tensor:
    """``2 Re(C x)`` as a product with the real states, ``(S, 1, N)``."""
    return 2 * _parts(c.conj())[:, None]


def _by_powers(dt: Tensor, poles: Tensor, p: Tensor, b: Tensor, c: Tensor, row: int, count: int) -> Tensor:
    """The first taps ``(S, count)`` of systems whose ``C`` is that of rows of ``row`` positions."""
    matrix, enter = _discrete(dt, poles, p, b)
    powers = squares(matrix, row)
    leave = torch.linalg.solve(-power(powers, row), _row(c), left=False)[:, 0]
    return _powers.response(powers, enter, leave, count)


def _by_sums(dt: Tensor, poles: Tensor, p: Tensor, b: Tensor, c: Tensor, row: int, count: int) -> Tensor:
    """The same by sums over the modes at every frequency of the row."""
    return _cauchy.response(dt, poles, p, b, c, row)[:, :count]
