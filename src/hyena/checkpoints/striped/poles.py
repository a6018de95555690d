"""Poles and residues of StripedHyena's filters as those of a :class:`hyena.filters.ModalFilter`.

Dimensions: D channels, m modes.
"""

from __future__ import annotations

import math
from collections import Counter

import torch
from torch import Tensor

# Decay of a mode on the unit circle: exp(-1e-30 t) is 1 for every t, and its logarithm a finite weight.
_NO_DECAY = 1e-30

# What a mode may grow by over the longest row: taps, spectra and sums of them stay far below float32's largest number.
_MOST_GROWTH = 1e20


def complex_modes(poles: Tensor, residues: Tensor, l_max: int, report: Counter[str]) -> dict[str, Tensor]:
    """``h_t = Re sum_s R_s p_s^t`` with any poles; the weights ``(1, D, m)`` of the same filter, in float64.

    Args:
        poles, residues: ``(D, m, 1, 2)``, real and imaginary parts.
        l_max: longest row.
        report: how many poles were treated specially, and how, is added here.
    """
    p, r = (torch.view_as_complex(t.double()[:, :, 0].contiguous()) for t in (poles, residues))
    decay = -p.abs().log()
    turned = p.angle()
    log_decay, growth, kept = _decay(decay, l_max, report)
    # Where the modulus was changed the pole that multiplies the residue is the new one. A pole of zero is no mode.
    pole = torch.where(kept, p, torch.polar(torch.exp(growth - log_decay.exp()), turned))
    residue = torch.where(decay.isposinf(), torch.zeros_like(r), r * pole)
    return {
        "log_decay": log_decay[None],
        "growth": growth[None],
        "angle": turned[None],
        "residue": torch.view_as_real(residue)[None],
        "first": r.real.sum(-1)[None],
        "error": torch.zeros_like(growth[None, :, 0]),
    }


def real_modes(log_poles: Tensor, residues: Tensor, l_max: int, report: Counter[str]) -> dict[str, Tensor]:
    """``h_t = sum_s R_s exp(lp_s t)``; as :func:`complex_modes`.

    Args:
        log_poles: ``(D, m, 1)``.
        residues: ``(D, m)``.
        l_max, report: see there.
    """
    decay, r = -log_poles.double()[:, :, 0], residues.double()
    log_decay, growth, kept = _decay(decay, l_max, report)
    pole = torch.where(kept, torch.exp(-decay), torch.exp(growth - log_decay.exp()))
    return {
        "log_decay": log_decay[None],
        "growth": growth[None],
        "residue": torch.where(decay.isposinf(), torch.zeros_like(r), r * pole)[None],
        "first": r.sum(-1)[None],
        "error": torch.zeros_like(growth[None, :, 0]),
    }


def _decay(decay: Tensor, l_max: int, report: Counter[str]) -> tuple[Tensor, Tensor, Tensor]:
    """``log_decay`` and ``growth`` of decays of any sign, and whether they say the same."""
    most = math.log(_MOST_GROWTH) / max(l_max - 1, 1)
    zero, outside, circle = decay.isposinf(), decay < 0, decay == 0
    fast = -decay > most
    if not decay.is_meta:
        for name, where in (("zero", zero), ("outside", outside & ~fast), ("circle", circle), ("fast", fast)):
            report[name] += int(where.sum())
    log_decay = torch.where(zero, torch.ones_like(decay), decay).clamp_min(_NO_DECAY).log()
    growth = torch.where(outside, -decay, torch.zeros_like(decay)).clamp_max(most)
    return log_decay, growth, ~(fast | zero)


def describe(reports: dict[int, Counter[str]], l_max: int) -> str:
    """What was done with poles that were treated specially, for a warning; empty if there were none."""
    meaning = {
        "zero": "of zero, which count in the tap at lag 0 alone",
        "circle": "on the unit circle, whose modes never fade: kept",
        "outside": "outside the unit circle, whose modes grow: kept",
        "fast": f"so far outside that their modes would leave float32's range within l_max={l_max} positions: moved "
        f"inwards, to grow by {_MOST_GROWTH:.0e} over them, so that outputs differ from the authors' where theirs are "
        "finite",
    }
    lines = []
    for name, text in meaning.items():
        layers = {i: report[name] for i, report in reports.items() if report[name]}
        if layers:
            where = ", ".join(f"{count} in layer {i}" for i, count in layers.items())
            lines.append(f"{sum(layers.values())} poles {text} ({where})")
    return "; ".join(lines)
