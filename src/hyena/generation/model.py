"""A model's decoding state, and its logits for the next tokens.

Dimensions: B batch, n new positions, V vocabulary.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from hyena.mixers.base import Mixer, State
from hyena.mixers.masks import keep_from_tokenizer


@dataclasses.dataclass
class ModelState(State):
    """The states of all layers of a model, and how many tokens each row has.

    Args:
        layers: one state for each block.
        tokens: ``(B,)`` int64, positions that are not padding.
    """

    layers: list[State]
    tokens: Tensor


def init_state(model: Any, batch: int, max_length: int | None = None) -> ModelState:
    """See :meth:`hyena.models.Decoder.init_state`."""
    model.check_can_decode(needs_logits=False)
    limit = model.config.l_max
    length = limit if max_length is None else max_length
    if not 1 <= length <= limit:
        raise ValueError(f"max_length must be 1 to this model's l_max={limit}, got {length}")
    states = []
    for i, block in enumerate(model.blocks):
        if not isinstance(block.mixer, Mixer):
            raise ValueError(
                f"blocks.{i}.mixer is a {type(block.mixer).__name__}, and only a hyena.mixers.Mixer can be stepped; "
                "hyena.generation.generate_by_rerun works with any mixer"
            )
        states.append(block.mixer.init_state(batch, length))
    device = model.embedding.weight.device
    return ModelState(0, length, states, torch.zeros(batch, dtype=torch.long, device=device))


@torch.no_grad()
def advance(model: Any, tokens: Tensor, state: ModelState, mask: Tensor | None = None, *, last: bool = False) -> Tensor:
    """Logits after each of the next tokens; see :meth:`hyena.models.Decoder.prefill`."""
    if tokens.dim() != 2 or tokens.size(0) != state.batch or tokens.size(1) < 1:
        raise ValueError(f"expected tokens of shape ({state.batch}, n), n at least 1, got {tuple(tokens.shape)}")
    if mask is not None:
        mask = keep_from_tokenizer(mask, tokens.shape)
    drops = max(part.p for part in (model.dropout, *(block.dropout for block in model.blocks)))
    if model.training and drops > 0:
        raise ValueError(f"the model is in training mode with dropout={drops}; call eval() first")
    state.check_room(tokens.size(1), f"this model's l_max={model.config.l_max}")
    counted = torch.ones_like(tokens) if mask is None else mask.long()
    x = model.embed(tokens, (state.tokens[:, None] + counted.cumsum(1) - 1).clamp_min(0))
    for block, layer in zip(model.blocks, state.layers, strict=True):
        x = block(x, mask=mask, state=layer)
    state.tokens += counted.sum(1)
    state.position += tokens.size(1)
    x = model.norm((x[:, -1:] if last else x).to(model.norm.weight.dtype))
    return x if model.head is None else model.head(x)
