"""Hyena's operator with every setting said, one changed at a time: nothing here depends on the library's defaults."""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

import torch
from torch import nn

from hyena import HyenaFilter, HyenaOperator
from hyena.filters import ExponentialWindow
from hyena.models import CausalLM, CausalLMConfig


@dataclasses.dataclass(frozen=True)
class Variant:
    """What may be changed; the values are those that the sweep starts from.

    Attributes:
        freq, emb_dim, width, inner_layers, shift: of :class:`hyena.HyenaFilter`; ``freq`` None: its rule.
        slow, fast: of the window, ``slow_decay_pct`` and ``fast_decay_pct``.
        spacing: of the window's decays from slow to fast, "linear" or "geometric".
        norm: l2 norm that the filters start with, on average; None: the released code's start, a uniform last layer.
        skip: standard deviation of the start of the term ``d x`` beside each convolution.
        short: what the start of the short convolution's taps is multiplied by.
        filter_lr: learning rate of the filters over that of the rest.
        order: of the operator.
        mlp: of the model around it.
    """

    freq: float | None = 10.0
    emb_dim: int = 33
    width: int = 64
    inner_layers: int = 2
    shift: float = 0.0
    slow: float = 1.5
    fast: float = 0.3
    spacing: str = "linear"
    norm: float | None = 1.0
    skip: float = 1.0
    short: float = 1.0
    filter_lr: float = 1.0
    order: int = 2
    mlp: str = "gelu"


def model(variant: Variant, vocabulary: int, length: int, *, width: int, layers: int) -> CausalLM:
    """A language model of this operator."""

    def mixer(d_model: int, l_max: int, **at: Any) -> HyenaOperator:
        long = variant.order - 1
        window = ExponentialWindow(
            d_model, long, slow_decay_pct=variant.slow, fast_decay_pct=variant.fast, shift=variant.shift
        )
        made = functools.partial(
            HyenaFilter,
            emb_dim=variant.emb_dim,
            width=variant.width,
            inner_layers=variant.inner_layers,
            freq=variant.freq,
            window=window,
        )
        return HyenaOperator(d_model, l_max, order=variant.order, filter=made, **at)

    config = CausalLMConfig(
        vocab_size=vocabulary, l_max=length, d_model=width, num_layers=layers, mixer=mixer, mlp=variant.mlp
    )
    made = CausalLM(config)
    for part in made.modules():
        if isinstance(part, HyenaOperator):
            start(part, variant)
    return made


@torch.no_grad()
def start(operator: HyenaOperator, variant: Variant) -> None:
    """Initialises the window, the filters' last layer and the skip term as the variant has it."""
    filter: Any = operator.conv.filter
    deltas, out = filter.window.deltas, filter.ffn.out
    if variant.spacing == "geometric":
        slow, fast = filter.window.ends
        row = torch.logspace(math.log10(-slow), math.log10(-fast), operator.d_model).neg()
        deltas.copy_(row.repeat(len(deltas) // len(row)))
    if variant.norm is None:
        bound = variant.width**-0.5
        nn.init.uniform_(out.weight, -bound, bound)
    else:
        taps = filter(operator.l_max)  # (F, K, C)
        out.weight.mul_(variant.norm / taps.norm(dim=1).view(-1, 1))
    operator.conv.bias.mul_(variant.skip)
    operator.short.weight.mul_(variant.short)
