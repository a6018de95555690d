"""Inputs of ``hyena::short_conv``."""

from __future__ import annotations

from helpers.cases import make_mask, rand


def inputs(batch: int, length: int, channels: int, taps: int, *, bias: bool = True, mask: str = "none") -> dict:
    """Inputs of the op, float64."""
    return {
        "z": rand(batch, length, channels, seed=1),
        "weight": rand(channels, taps, seed=2),
        "bias": rand(channels, seed=3) if bias else None,
        "mask": make_mask(mask, batch, length),
    }
