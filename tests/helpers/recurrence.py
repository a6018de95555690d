"""Inputs, a differentiable call and a definition of ``hyena::recurrence``."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from helpers import oracle
from helpers.cases import LAYOUTS, MASKS, Tier, make_mask, place, rand, rows_of
from hyena import ops


def inputs(
    batch: int,
    length: int,
    channels: int,
    *,
    order: int = 2,
    value_filter: bool = False,
    taps: int | None = None,
    groups: int | None = None,
    short: int = 3,
    causal: bool = True,
    bias: bool = True,
    mask: str = "none",
    z_bias: bool = False,
) -> dict[str, Tensor | None]:
    """Inputs of :func:`convolve`, float64; ``F`` filters of norm about 1, so that nothing grows with the length."""
    filters, groups, taps = order if value_filter else order - 1, groups or channels, taps or length
    h = rand(filters, taps if causal else 2 * taps - 1, groups, seed=4)
    last = {"z_bias": rand((order + 1) * channels, seed=6)} if z_bias else {}
    return {
        "z": rand(batch, length, (order + 1) * channels, seed=1),
        "weight": rand((order + 1) * channels, short, seed=2),
        "bias": rand((order + 1) * channels, seed=3) if bias else None,
        "h": h * 2.0 ** -round(torch.tensor(float(h.size(1))).log2().item() / 2),
        "d": rand(filters, channels, seed=5),
        "mask": make_mask(mask, batch, length),
        **last,
    }


@st.composite
def small_parts(draw: st.DrawFn) -> dict[str, Any]:
    """Of :func:`inputs`: what is beside filters and sizes."""
    return {
        "short": draw(st.integers(1, 5)),
        "bias": draw(st.booleans()),
        "mask": draw(st.sampled_from(MASKS)),
        "z_bias": draw(st.booleans()),
    }


def convolve(
    z: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    h: Tensor,
    d: Tensor,
    mask: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    z_bias: Tensor | None = None,
    *,
    causal: bool = True,
    size: int | None = None,
    sectioned: bool = False,
) -> Tensor:
    """The op and the spectra it needs, so that the gradient arrives at the taps."""
    spectrum = ops.filter_spectrum(h, ops.transform_length(z.size(1)) if size is None else size, causal)
    return ops.recurrence(z, weight, bias, spectrum, d, mask, cu_seqlens, z_bias, sectioned)


def mix(z: Tensor, weight: Tensor, bias: Tensor | None, h: Tensor, d: Tensor, *rest: Any, **more: Any) -> Tensor:
    """``hyena::direct_recurrence`` of the one filter that :func:`inputs` gave."""
    return ops.direct_recurrence(z, weight, bias, h[0], d[0], *rest, **more)


def matrices(
    z: Tensor,
    cu_seqlens: Tensor | None = None,
    z_bias: Tensor | None = None,
    *,
    order: int,
    causal: bool = True,
    **given: Any,
) -> Tensor:
    """The oracle, with packed rows and a bias of z as the op takes them."""
    z = z if z_bias is None else z + z_bias
    return oracle.recurrence_of_z(z, **given, order=order, causal=causal, rows=rows_of(cu_seqlens))


def check_gradients_of_padding(
    call: Callable[..., Tensor], kinds: list[tuple[int, bool]], tier: Tier, poison: float
) -> None:
    """Gradients of ``call`` are the same whatever stands in the gradient of what is not kept."""
    for (order, value_filter), layout in itertools.product(kinds, LAYOUTS[:2]):
        given = inputs(2, 90, 3, taps=9, order=order, value_filter=value_filter, mask="random")
        x = place(given, tier, torch.float32, {"z": layout})
        leaves = [t.requires_grad_() for t in x.values() if t is not None and t.is_floating_point()]
        dy, keep = rand(2, 90, 3).float().to(tier.device), x["mask"][..., None]
        with tier():
            y = call(**x)
            clean, dirty = (
                torch.autograd.grad(y, leaves, torch.where(keep, dy, at), retain_graph=True) for at in (0.0, poison)
            )
        for a, b in zip(clean, dirty, strict=True):
            assert torch.equal(a, b)
