"""Fits of modal filters to long ones (Laughing Hyena, arXiv 2310.18780, section 3).

First guess: ESPRIT (Roy and Kailath 1989, doi:10.1109/29.32276) on each filter's Hankel matrix, the poles that one
invariant subspace of it has. Then gradient steps on the poles with the residues that fit them best, by least squares.
All filters at once.

Dimensions: F long filters, G filter channels, K taps, R = F * G filters, T samples, m modes.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from hyena.filters._exponentials import response

# Samples that poles are found from: filters are smooth at the scale of l_max, so a long one is looked at every few
# taps. The singular value decomposition of a Hankel matrix of half as many rows is what costs time.
SAMPLES = 512

# Gradient steps, and their size in units of the poles' own resolution. More did not lower the errors.
_STEPS = 150
_RATE = 0.02

# Of the least squares problem for the residues, whose columns have norm 1: it costs its square where poles are apart.
_RIDGE = 1e-4

# Poles stay this far inside the unit disc when they are found, in units of 1 / T: a decay by 1e-3 over the filter.
_LEAST_DECAY = 1e-3


class Fit(NamedTuple):
    """Modes of filters and how close they are: ``(F, G, m)`` or, inside the fit, ``(R, m)`` each.

    Attributes:
        decay, angle, residue: see :class:`hyena.filters.base.Modes`.
        first: the tap at lag 0, without the axis of modes.
        error: relative l2 error, without the axis of modes.
    """

    decay: Tensor
    angle: Tensor
    residue: Tensor
    first: Tensor
    error: Tensor


def fit(h: Tensor, modes: int) -> Fit:
    """Fits modes to filters.

    Args:
        h: ``(F, K, G)`` taps, float64.
        modes: m.
    """
    filters, taps, channels = h.shape
    rows = h.transpose(1, 2).reshape(-1, taps)  # (R, K)
    first, tail = rows[:, 0], rows[:, 1:]
    if tail.size(1) == 0:
        tail = tail.new_zeros(rows.size(0), 1)
    scale = tail.norm(dim=1).clamp_min(torch.finfo(tail.dtype).tiny)
    decay, angle = _first_guess(tail / scale[:, None], modes)
    best = _solve(tail / scale[:, None], decay, angle)
    decay, angle, residue, error = _refine(tail / scale[:, None], decay, angle, *best)
    error = error * scale / rows.norm(dim=1).clamp_min(torch.finfo(tail.dtype).tiny)
    shape = (filters, channels, modes)
    residue = residue * scale[:, None]
    return Fit(decay.view(shape), angle.view(shape), residue.view(shape), first.view(shape[:2]), error.view(shape[:2]))


def _first_guess(g: Tensor, modes: int) -> tuple[Tensor, Tensor]:
    """Decay and angle ``(R, m)`` of poles of ``g`` (R, K)."""
    stride = -(-g.size(1) // SAMPLES)
    found = [_esprit(g[:, ::stride], modes, stride)]
    if stride > 1:  # what oscillates too fast to be seen with gaps, and has died soon
        found.append(_esprit(g[:, :SAMPLES], modes, 1))
    decay, angle, unused = (torch.cat(part, dim=1) for part in zip(*found))
    return _strongest(g, decay.clamp_min(_LEAST_DECAY / g.size(1)), angle, unused, modes)


def _esprit(samples: Tensor, modes: int, stride: int) -> tuple[Tensor, Tensor, Tensor]:
    """Decay, angle and whether it is unused, ``(R, poles)``, of samples ``stride`` taps apart."""
    count = samples.size(1)
    hankel = samples.unfold(1, count - (count + 1) // 2 + 1, 1)
    rank = min(2 * modes, hankel.size(1) - 1, hankel.size(2))
    if rank < 1:
        return samples.new_ones(samples.size(0), 0), samples.new_zeros(samples.size(0), 0), samples[:, :0] > 0
    u = torch.linalg.svd(hankel, full_matrices=False).U[..., :rank]
    poles = torch.linalg.eigvals(torch.linalg.pinv(u[:, :-1]) @ u[:, 1:])  # (R, rank)
    # A pole outside the unit disc is mirrored into it. Of a conjugate pair one is enough, since Re(R p^t) has any
    # amplitude and phase.
    decay = (-poles.abs().clamp_min(1e-12).log() / stride).abs().clamp_max(10.0)
    return decay, poles.angle() / stride, poles.imag < -1e-12


def _strongest(g: Tensor, decay: Tensor, angle: Tensor, unused: Tensor, modes: int) -> tuple[Tensor, Tensor]:
    """The ``modes`` poles of each row that carry most of ``g``, filled up where there are fewer."""
    # Unused poles become one that has died after a tap; the ridge in the solution shares it out between them.
    decay, angle = torch.where(unused, 10.0, decay), torch.where(unused, 0.0, angle)
    residue, _ = _solve(g, decay, angle)
    energy = residue.abs().square() / (1 - torch.exp(-2 * decay))
    energy = energy.masked_fill(unused, -1.0)
    if energy.size(1) < modes:
        # More modes than an invariant subspace can give: a Fourier basis beside it.
        extra = modes - energy.size(1)
        grid = torch.arange(extra, device=g.device, dtype=g.dtype) * (math.pi / extra)
        decay = torch.cat([decay, decay.new_full((decay.size(0), extra), 1.0 / g.size(1))], dim=1)
        return decay, torch.cat([angle, grid.expand(angle.size(0), -1)], dim=1)
    chosen = energy.topk(modes, dim=1).indices
    return decay.gather(1, chosen), angle.gather(1, chosen)


def _basis(decay: Tensor, angle: Tensor, at: Tensor) -> Tensor:
    """What residues are multiplied by at times ``at``, real parts then imaginary parts: ``(R, T, 2m)``."""
    envelope = torch.exp(-decay[:, None] * at[:, None])
    phase = angle[:, None] * at[:, None]
    return torch.cat([envelope * torch.cos(phase), -envelope * torch.sin(phase)], dim=2)


def _times(count: int, like: Tensor, most: int = 4 * SAMPLES) -> Tensor:
    """Taps that residues are solved from: all, or of long filters evenly spaced ones."""
    return torch.arange(0, count, -(-count // most), device=like.device)


def _solve(g: Tensor, decay: Tensor, angle: Tensor) -> tuple[Tensor, Tensor]:
    """Residues ``(R, m)`` that fit ``g`` best, and the relative error over all taps ``(R,)``."""
    at = _times(g.size(1), g)
    basis = _basis(decay, angle, at.to(g.dtype))
    # Columns of about equal norm (a real pole's second one is zero) and a ridge: where poles nearly coincide, residues
    # stay small enough for single precision.
    norm = basis.norm(dim=1, keepdim=True).clamp_min(1e-2)
    ridge = _RIDGE * torch.eye(basis.size(2), dtype=g.dtype, device=g.device)
    q, r = torch.linalg.qr(torch.cat([basis / norm, ridge.expand(g.size(0), -1, -1)], dim=1))
    right = q[:, : at.numel()].transpose(1, 2) @ g[:, at, None]
    x = torch.linalg.solve_triangular(r, right, upper=True)[..., 0] / norm[:, 0]
    residue = torch.complex(*x.chunk(2, dim=1))
    # Taps that were not among the samples count too: the best multiple over all of them is never worse than nothing.
    got = response(decay, angle, residue, g.size(1))
    factor = (got * g).sum(1, keepdim=True) / got.square().sum(1, keepdim=True).clamp_min(1e-30)
    residue, got = factor * residue, factor * got
    error = (got - g).norm(dim=1) / g.norm(dim=1).clamp_min(1e-30)
    return residue, torch.where(error.isfinite(), error, torch.inf)


def _refine(
    g: Tensor, decay: Tensor, angle: Tensor, residue: Tensor, error: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradient steps on the poles, residues solved for again now and then; the best of each row is kept."""
    best = [decay, angle, residue, error]
    at = _times(g.size(1), g, SAMPLES)
    target, times = g[:, at], at.to(g.dtype)
    log_decay, turn = decay.log().requires_grad_(), torch.zeros_like(angle, requires_grad=True)
    optimizer = torch.optim.Adam([log_decay, turn], lr=_RATE, betas=(0.9, 0.99))
    with torch.enable_grad():
        for step in range(_STEPS):
            # Angles in units of a turn over the filter's length, or over the pole's own life.
            now = angle + turn * decay.clamp_min(1.0 / g.size(1))
            if step % 10 == 0:
                residue, _ = _solve(g, log_decay.detach().exp(), now.detach())
                x = torch.cat([residue.real, residue.imag], dim=1)
            left = (_basis(log_decay.exp(), now, times) @ x[..., None])[..., 0] - target
            # Each row by itself: the logarithm makes a gradient of the relative error.
            loss = 0.5 * (left.square().sum(1) + 1e-24).log().sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if step % 10 == 9:
                found = [log_decay.detach().exp(), (angle + turn * decay.clamp_min(1.0 / g.size(1))).detach()]
                found += _solve(g, *found)
                better = found[3] < best[3]
                best = [torch.where(better if a.dim() == 1 else better[:, None], a, b) for a, b in zip(found, best)]
    return best[0], best[1], best[2], best[3]
