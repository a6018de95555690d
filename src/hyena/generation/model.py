"""A language model's logits for tokens that come bit by bit.

Dimensions: B batch, D channels (d_model), M heads, n new positions, T longest row, V vocabulary.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hyena.generation import stepping
from hyena.generation.state import AttentionState, HyenaState, ModelState, StateSize
from hyena.integrations.attention import HyenaAttention
from hyena.mixers.hyena import HyenaOperator
from hyena.mixers.masks import keep_from_tokenizer

if TYPE_CHECKING:
    from hyena.models import Attention, Block, Decoder


def init_state(model: Decoder, batch: int, max_length: int | None = None) -> ModelState:
    """See :meth:`hyena.models.Decoder.init_state`."""
    length = _length(model, max_length)
    states: list[HyenaState | AttentionState] = []
    for mixer in _mixers(model):
        if isinstance(mixer, HyenaOperator):
            states.append(stepping.init_state(mixer, batch, length))
        else:
            states.append(init_attention(mixer, batch, length))
    return ModelState(states, torch.zeros(batch, dtype=torch.long, device=model.embedding.weight.device))


def state_size(
    module: HyenaOperator | HyenaAttention | Decoder, batch: int, max_length: int | None = None
) -> StateSize:
    """Bytes that ``module.init_state(batch, max_length)`` allocates, found without allocating.

    Args:
        module: an operator, or anything else with an ``init_state``.
        batch: B.
        max_length: as for ``init_state``.

    Returns:
        ``rows``, which grows with the batch, and ``shared``, the filters', which states of an operator in eval mode
        have in common.

    Raises:
        ValueError: as ``init_state``.
    """
    if isinstance(module, HyenaAttention):
        module = module.operator
    if isinstance(module, HyenaOperator):
        return stepping.state_size(module, batch, max_length)
    length = _length(module, max_length)
    rows, shared = 8 * batch, 0
    for mixer in _mixers(module):
        if isinstance(mixer, HyenaOperator):
            size = stepping.state_size(mixer, batch, length)
            rows, shared = rows + size.rows, shared + size.shared
        else:
            weight = mixer.in_proj.weight
            rows += batch * length * (2 * weight.size(1) * weight.element_size() + 1)
    return StateSize(rows, shared)


def _length(model: Decoder, max_length: int | None) -> int:
    model.check_can_decode(needs_logits=False)
    limit = model.config.l_max
    length = limit if max_length is None else max_length
    if not 1 <= length <= limit:
        raise ValueError(f"max_length must be 1 to this model's l_max={limit}, got {length}")
    return length


def _blocks(model: Decoder) -> list[Block]:
    return cast("list[Block]", list(model.blocks))


def _mixers(model: Decoder) -> list[HyenaOperator | Attention]:
    from hyena.models import Attention

    mixers = []
    for i, block in enumerate(_blocks(model)):
        mixer = block.mixer
        if not isinstance(mixer, (HyenaOperator, Attention)):
            raise ValueError(
                f"blocks.{i}.mixer is a {type(mixer).__name__}, and only HyenaOperator and hyena.models.Attention can "
                "be stepped; hyena.generation.generate_by_rerun works with any mixer"
            )
        mixers.append(mixer)
    return mixers


@torch.no_grad()
def advance(
    model: Decoder, tokens: Tensor, state: ModelState, mask: Tensor | None = None, *, last: bool = False
) -> Tensor:
    """Logits after each of the next tokens; see :meth:`hyena.models.Decoder.prefill`.

    Args:
        model: in eval mode, if it has dropout.
        tokens: ``(B, n)``.
        state: changed in place.
        mask: ``(B, n)``, True or 1 = keep.
        last: only the last position's logits, ``(B, 1, V)``.
    """
    if tokens.dim() != 2 or tokens.size(0) != state.batch or tokens.size(1) < 1:
        raise ValueError(f"expected tokens of shape ({state.batch}, n), n at least 1, got {tuple(tokens.shape)}")
    if mask is not None:
        mask = keep_from_tokenizer(mask, tokens.shape)
    drops = max(part.p for part in (model.dropout, *(block.dropout for block in _blocks(model))))
    if model.training and drops > 0:
        raise ValueError(f"the model is in training mode with dropout={drops}; call eval() first")
    state.check_room(tokens.size(1), f"this model's l_max={model.config.l_max}")
    counted = torch.ones_like(tokens) if mask is None else mask.long()
    x = model.embed(tokens, (state.tokens[:, None] + counted.cumsum(1) - 1).clamp_min(0))
    for block, layer in zip(_blocks(model), state.layers, strict=True):
        # As Block.forward, with the mixer's steps in its forward's place.
        mixed = _mix(block.mixer, block.norm1(x.to(block.norm1.weight.dtype)), layer, mask)
        x = x + mixed
        x = x + block.mlp(block.norm2(x.to(block.norm2.weight.dtype)))
    state.tokens += counted.sum(1)
    # As the models' forward, from here on.
    x = model.norm((x[:, -1:] if last else x).to(model.norm.weight.dtype))
    return x if model.head is None else model.head(x)


def _mix(mixer: nn.Module, u: Tensor, state: HyenaState | AttentionState, mask: Tensor | None) -> Tensor:
    if isinstance(state, HyenaState):
        assert isinstance(mixer, HyenaOperator)
        return stepping.prefill(mixer, u, state, mask)[0]
    return attend(cast("Attention", mixer), u, state, mask)


@torch.inference_mode(False)
@torch.no_grad()
def init_attention(mixer: Attention, batch: int, max_length: int) -> AttentionState:
    """A cache of keys and values for ``max_length`` positions."""
    weight = mixer.in_proj.weight
    shape = (batch, mixer.num_heads, max_length, weight.size(1) // mixer.num_heads)
    keep = torch.zeros(batch, max_length, dtype=torch.bool, device=weight.device)
    return AttentionState(0, weight.new_zeros(shape), weight.new_zeros(shape), keep)


@torch.no_grad()
def attend(mixer: Attention, u: Tensor, state: AttentionState, mask: Tensor | None = None) -> Tensor:
    """Attention of the next positions ``(B, n, D)`` to themselves and all before; changes ``state`` in place."""
    n, start = u.size(1), state.position
    stop = start + n
    state.check_room(n, "the cache of keys and values")
    q, k, v = (p.unflatten(2, (mixer.num_heads, -1)).transpose(1, 2) for p in mixer.in_proj(u).chunk(3, dim=2))
    state.keys[:, :, start:stop], state.values[:, :, start:stop] = k, v
    state.keep[:, start:stop] = True if mask is None else mask
    state.position = stop
    allowed = None
    at = torch.arange(stop, device=u.device)
    causal = at <= at[start:, None]
    if mask is not None or not bool(state.keep[:, :stop].all()):
        # A padded query may see itself: a row of the softmax with nothing in it would be NaN.
        allowed = (causal & state.keep[:, None, None, :stop]) | (at == at[start:, None])
    elif n > 1:
        allowed = causal
    y = F.scaled_dot_product_attention(q, state.keys[:, :, :stop], state.values[:, :, :stop], attn_mask=allowed)
    return mixer.out_proj(y.transpose(1, 2).flatten(2))
