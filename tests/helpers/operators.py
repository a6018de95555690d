"""Configurations of the operator for its tests, and what each must compute."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from helpers import oracle
from hyena import HyenaOperator
from hyena.checkpoints.safari.blocks import SafariOperator
from hyena.filters import ExplicitFilter, ModalFilter
from hyena.mixers._arguments import ACTIVATIONS

D, L_MAX = 8, 96

CONFIGS: dict[str, dict[str, Any]] = {
    "default": {},
    "order-1": {"order": 1},
    "order-1-paper": {"order": 1, "value_filter": True},
    "order-2-paper": {"value_filter": True},
    "order-3": {"order": 3},
    "order-4-paper": {"order": 4, "value_filter": True},
    "two-sided": {"causal": False},
    "two-sided-order-3-paper": {"causal": False, "order": 3, "value_filter": True},
    "groups": {"filter_groups": 2},
    "heads": {"num_heads": 2},
    "heads-order-3": {"num_heads": 4, "order": 3},
    "heads-two-sided-paper": {"num_heads": 2, "causal": False, "value_filter": True},
    "wide": {"inner_factor": 2},
    "activation": {"activation": "gelu"},
    "explicit": {"filter": partial(ExplicitFilter, taps=5)},
    "modal": {"filter": partial(ModalFilter, modes=3), "order": 3},
    "modal-real": {"filter": partial(ModalFilter, modes=3, real=True)},
    "no-bias": {"bias": False},
    "short-1": {"short_taps": 1},
    "short-7": {"short_taps": 7},
}


SAFARI: dict[str, dict[str, Any]] = {
    "head-mixing": {"num_heads": 2, "order": 3, "post_order_ffn": True},
    "blocks": {"num_blocks": 2},
}
CONFIGS |= SAFARI


def build(name: str, **more: Any) -> HyenaOperator:
    """The operator of a configuration, with head mixing that does mix."""
    kind = SafariOperator if name in SAFARI else HyenaOperator
    m = kind(D, L_MAX, **{**CONFIGS[name], **more})
    if name == "head-mixing":
        nn.init.normal_(m.head_mixing)
    return m


def expected(m: HyenaOperator, u: Tensor, mask: Tensor | None = None, taps: Tensor | None = None) -> Tensor:
    """What ``m`` is to compute, from its weights and its filter's taps, differentiable; ``u`` (B, L, D), float64.

    ``taps`` (F, K, G) instead of the filter's own.
    """
    z = u @ m.in_proj.weight.T + (0 if m.in_proj.bias is None else m.in_proj.bias)
    zc = oracle.short_conv(z, m.short.weight, m.short.bias, mask)
    size = u.size(1) // getattr(m, "num_blocks", 1)
    h = taps
    if h is None:
        h = z.new_zeros(0, 1, 1) if m.conv.filter is None else m.conv.filter(size)
    blocks = [
        oracle.recurrence(
            list(part.chunk(m.order + 1, dim=2)),
            h,
            m.conv.bias,
            causal=m.causal,
            num_heads=m.num_heads,
            head_mixing=getattr(m, "head_mixing", None),
        )
        for part in zc.split(size, dim=1)
    ]
    y = torch.cat(blocks, dim=1)
    y = ACTIVATIONS["gelu"](y) if m.activation is not None else y
    return y @ m.out_proj.weight.T + (0 if m.out_proj.bias is None else m.out_proj.bias)
