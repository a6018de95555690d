"""Inputs, a differentiable call and a definition of ``hyena::gated_conv``."""

from __future__ import annotations

import torch
from torch import Tensor

from helpers import oracle
from helpers.cases import rand, rows_of
from helpers.tolerances import TOLERANCE
from hyena import ops


def inputs(
    batch: int, length: int, channels: int, taps: int, groups: int, *, causal: bool = True, gates: str = "d pre post"
) -> dict[str, Tensor | None]:
    """Inputs of :func:`convolve`, float64."""
    row = (batch, length, channels)
    return {
        "v": rand(*row, seed=1),
        "h": rand(taps if causal else 2 * taps - 1, groups, seed=2),
        "d": rand(channels, seed=3) if "d" in gates else None,
        "pre": rand(*row, seed=4) if "pre" in gates else None,
        "post": rand(*row, seed=5) if "post" in gates else None,
    }


def convolve(
    v: Tensor,
    h: Tensor,
    d: Tensor | None = None,
    pre: Tensor | None = None,
    post: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    *,
    causal: bool = True,
    size: int | None = None,
    sectioned: bool = False,
) -> Tensor:
    """The op and the spectrum it needs, so that the gradient arrives at the taps."""
    spectrum = ops.filter_spectrum(h[None], ops.transform_length(v.size(1)) if size is None else size, causal)
    return ops.gated_conv(v, spectrum[0], d, pre, post, cu_seqlens, sectioned)


def matrices(cu_seqlens: Tensor | None = None, *, causal: bool = True, **given: Tensor) -> Tensor:
    """The oracle, with packed rows as the op takes them."""
    return oracle.gated_conv(**given, causal=causal, rows=rows_of(cu_seqlens))


def direct_errors(dtype: torch.dtype) -> dict[str, float]:
    """What ``hyena::direct_conv`` may err by: kernels add up gradients of taps and d of operands rounded to fp16."""
    if dtype not in (torch.bfloat16, torch.float16):
        return {}
    return {"d h": TOLERANCE[torch.float16], "d d": TOLERANCE[torch.float16]}
