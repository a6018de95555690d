"""Floating-point operations of a model by the formula of arXiv 2302.10866, appendix A.2, and Hoffmann et al. 2022.

As printed there, an operator of order N has N projections; it has N + 1, each with a short convolution, and its long
convolutions are transforms of 2 L points, with which the formula gives the paper's own table 4.4 (within 1 %). Filters
are generated once a batch, whatever its rows, and like gates, norms and activations they are not counted.

Dimensions: L length, D width, I inner width of the MLP, V vocabulary, N order, M heads.
"""

from __future__ import annotations

import dataclasses
import math
from typing import cast

from hyena import HyenaOperator
from hyena.mixers import H3, Attention
from hyena.models import CausalLM
from hyena.models.blocks import MLP, Block

BACKWARD = 2  # times the forward pass


@dataclasses.dataclass(frozen=True)
class Flops:
    """Operations of one row.

    Attributes:
        products: of matrix products.
        rest: of convolutions, softmax, and the embedding, which is counted as a product with V rows.
    """

    products: float
    rest: float = 0.0

    def __add__(self, other: Flops) -> Flops:
        return Flops(self.products + other.products, self.rest + other.rest)

    @property
    def total(self) -> float:
        """Both."""
        return self.products + self.rest


def convolutions(length: int, channels: int) -> float:
    """Long convolutions of so many channels: a transform of ``P = 2 L`` points and one back, ``5 P log2 P`` each."""
    points = 2 * length
    return 2 * channels * 5 * points * math.log2(points)


def hyena(length: int, width: int, order: int = 2, short_taps: int = 3, filters: int | None = None) -> Flops:
    """A Hyena operator; ``filters`` long filters a channel, ``order - 1`` if missing."""
    filters = order - 1 if filters is None else filters
    products = 2 * length * (order + 2) * width**2
    return Flops(products, 2 * length * (order + 1) * width * short_taps + convolutions(length, filters * width))


def h3(length: int, width: int) -> Flops:
    """H3 with heads of one channel: keys through one long convolution, their products with values through another."""
    return Flops(2 * length * 4 * width**2, convolutions(length, 2 * width))


def attention(length: int, width: int, heads: int) -> Flops:
    """Attention, without the half that a causal mask may save."""
    return Flops(2 * length * 4 * width**2 + 4 * length**2 * width, 3 * heads * length**2)


def mlp(length: int, width: int, inner: int) -> Flops:
    """Two layers."""
    return Flops(4 * length * width * inner)


def ends(length: int, width: int, vocabulary: int) -> Flops:
    """Embedding and logits."""
    once = 2 * length * width * vocabulary
    return Flops(once, once)


def forward(model: CausalLM, length: int) -> Flops:
    """One row of this length through a model, forward.

    Raises:
        ValueError: a mixer that the formula does not have.
    """
    width = model.config.d_model
    found = ends(length, width, model.config.vocab_size)
    for block in cast("list[Block]", list(model.blocks)):
        found += _mixer(block.mixer, length) + mlp(length, width, cast(MLP, block.mlp).fc1.out_features)
    return found


def _mixer(mixer: object, length: int) -> Flops:
    if isinstance(mixer, HyenaOperator) and mixer.num_heads == 1 and mixer.width == mixer.d_model:
        return hyena(length, mixer.width, mixer.order, mixer.short.weight.size(1), mixer.conv.num_filters)
    if isinstance(mixer, H3) and mixer.head_dim == 1:
        return h3(length, mixer.d_model)
    if isinstance(mixer, Attention) and mixer.num_kv_heads == mixer.num_heads:
        return attention(length, mixer.d_model, mixer.num_heads)
    raise ValueError(
        f"no count for this {type(mixer).__name__}; there are those of HyenaOperator, H3 and Attention in their plain "
        "forms"
    )


def training(model: CausalLM, length: int, rows: int) -> float:
    """A training step on so many rows: forward, and backward as twice of that."""
    return (1 + BACKWARD) * rows * forward(model, length).total
