"""Initial weights of language models."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import nn

from hyena.filters import Filter


def small_init_std(d_model: int) -> float:
    """Returns SmallInit's standard deviation (arXiv 1910.05895)."""
    return math.sqrt(2 / (5 * d_model))


@torch.no_grad()
def small_init(blocks: nn.ModuleList, tables: Iterable[nn.Module | None], d_model: int) -> None:
    """Draws embeddings, output layer and linear layers of blocks from normal distributions; biases are zero.

    SmallInit (Nguyen and Salazar 2019, arXiv 1910.05895): about GPT-2's 0.02 at a width of 768, and 0.056 at 128, where
    0.02 trains more slowly (validation loss 1.70 against 1.63 in the Shakespeare example with default filters). What is
    added to the residual stream starts smaller by ``sqrt(2 num_layers)``, as in GPT-2.

    Args:
        blocks: of the model; layers named ``out_proj`` and ``fc2`` write to the residual stream. The filters' own
            layers keep their initialisation, which gives them unit norm.
        tables: layers with a weight of rows of the model's width, or None.
        d_model: that width.
    """
    std = small_init_std(d_model)
    for table in tables:
        if table is not None:
            nn.init.normal_(table.weight, std=std)  # type: ignore[arg-type]
    init_linear_layers(blocks, std, std / math.sqrt(2 * len(blocks)))


@torch.no_grad()
def init_linear_layers(part: nn.Module, std: float, residual: float) -> None:
    """Draws the linear layers of one block or of several, but the filters', from normal distributions.

    Args:
        part: blocks, or a block.
        std: standard deviation.
        residual: that of layers named ``out_proj`` and ``fc2``, which write to the residual stream.
    """
    filters_own = {inner for each in part.modules() if isinstance(each, Filter) for inner in each.modules()}
    for name, layer in part.named_modules():
        if isinstance(layer, nn.Linear) and layer not in filters_own and ".filter." not in name:
            nn.init.normal_(layer.weight, std=residual if name.endswith((".out_proj", ".fc2")) else std)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
