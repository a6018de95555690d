"""Base of the models: embedding, blocks, norm and head, over a whole sequence or its next tokens.

Dimensions: B batch, L length, n new positions, D channels (d_model), V vocabulary.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from hyena import ops
from hyena.generation import generate
from hyena.mixers import State, StateSize
from hyena.mixers.attention import row_starts
from hyena.mixers.masks import keep_from_tokenizer
from hyena.models.blocks import Block
from hyena.models.sharding import whole_parameters


@dataclasses.dataclass
class ModelState(State):
    """The decoding state of a model.

    Args:
        layers: one state for each block.
        tokens: ``(B,)`` int64, how many positions of each row were not padding.
    """

    layers: list[State]
    tokens: Tensor


class Decoder(nn.Module):
    """Base of models that read tokens in order: embedding, pre-norm blocks, LayerNorm, and a head or none.

    :meth:`forward` computes a whole sequence, or with a state its next tokens: the modules are called in both cases, so
    that hooks, wrappers and sharded parameters work alike.

    Attributes:
        config: with ``l_max``, ``vocab_size`` and ``gradient_checkpointing``.
        embedding: of the tokens.
        positions: learned positions that are added to it, or None. They count the kept positions of each row, so that
            padding and packing change nothing.
        dropout: before the first block.
        blocks: of :class:`hyena.models.Block`.
        norm: after the last; of a class with a ``weight``, or ``nn.Identity``.
        head: to logits, or None.
    """

    config: Any
    embedding: nn.Embedding
    positions: nn.Embedding | None
    dropout: nn.Dropout
    blocks: nn.ModuleList
    norm: nn.Module
    head: nn.Linear | None

    generate = generate

    def forward(
        self,
        tokens: Tensor,
        mask: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        max_seqlen: int | None = None,
        state: ModelState | None = None,
        *,
        last: bool = False,
    ) -> Tensor:
        """Computes the head's output for each position.

        Args:
            tokens: ``(B, L)`` integers below ``vocab_size``; with a ``state`` the next tokens of its rows.
            mask: ``(B, L)``, True or 1 = keep: a tokenizer's ``attention_mask``. With it a padded row gives what it
                gives alone, on whichever side the padding is.
            cu_seqlens: ``(rows + 1,)`` offsets of rows packed into one; then ``B = 1``.
            max_seqlen: the longest packed row, see :meth:`hyena.HyenaOperator.forward`.
            state: what came before, from :meth:`init_state`; changed in place. Without gradients :meth:`prefill` is the
                same.
            last: only the last position's output.

        Returns:
            Logits ``(B, L, V)`` for the token after each one, or without a head hidden states ``(B, L, D)``; with
            ``last`` of one position. Outputs at positions that are not kept mean nothing.

        Raises:
            TypeError: offsets that are no tensor.
            ValueError: an input longer than ``l_max``, or shapes or offsets that do not fit.
        """
        x = self.hidden_states(tokens, mask, cu_seqlens, max_seqlen, state, last=last)
        return x if self.head is None else ops.linear(x, self.head)

    def hidden_states(
        self,
        tokens: Tensor,
        mask: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        max_seqlen: int | None = None,
        state: ModelState | None = None,
        *,
        last: bool = False,
    ) -> Tensor:
        """Computes the normalised output of the last block, ``(B, L, D)``; arguments as for :meth:`forward`."""
        if tokens.dim() != 2:
            raise ValueError(f"tokens must be (B, L), got {tuple(tokens.shape)}")
        keep = None if mask is None else keep_from_tokenizer(mask, tokens.shape)
        if state is not None:
            self._check_next(tokens, state, cu_seqlens)
        ops.check_cu_seqlens(cu_seqlens, tokens)
        at = None if self.positions is None else self._count(tokens, keep, cu_seqlens, max_seqlen, state)
        mixing: dict[str, Any] = {"mask": keep, "cu_seqlens": cu_seqlens, "max_seqlen": max_seqlen}
        x = self.dropout(self.embed(tokens, at))  # (B, L, D)
        for i, block in enumerate(self.blocks):
            if state is not None:
                x = block(x, **mixing, state=state.layers[i])
            elif self.config.gradient_checkpointing and self.training:
                x = checkpoint(functools.partial(block, **mixing), x, use_reentrant=False)
            else:
                x = block(x, **mixing)
        if state is not None:
            state.position += tokens.size(1)
            state.tokens += tokens.size(1) if keep is None else keep.sum(1)
        if last:
            x = x[:, -1:]
        weight = getattr(self.norm, "weight", None)
        return self.norm(x if weight is None else x.to(weight.dtype))

    def embed(self, tokens: Tensor, at: Tensor | None) -> Tensor:
        """Embeds tokens for the first block, ``(B, n, D)``, without dropout.

        Args:
            tokens: ``(B, n)``.
            at: ``(B, n)`` or ``(n,)`` int64, the position of each in its row, padding not counted; None in models
                without learned positions.
        """
        x = self.embedding(tokens)
        return x if self.positions is None else x + self.positions(at)

    def _count(
        self,
        tokens: Tensor,
        keep: Tensor | None,
        cu_seqlens: Tensor | None,
        longest: int | None,
        state: ModelState | None,
    ) -> Tensor:
        """The position of each token in its row, not counting padding: ``(L,)`` or ``(B, L)``."""
        limit, at = self.config.l_max, torch.arange(tokens.size(1), device=tokens.device)
        counted = at if keep is None else keep.cumsum(1) - 1
        length = ops.longest_row(tokens, cu_seqlens, longest)
        if cu_seqlens is not None:
            ops.check_bounds(cu_seqlens, at.numel(), at.numel())
            if longest is None:
                length = int(cu_seqlens.diff().max())
            starts = row_starts(cu_seqlens, at.numel())
            counted = counted - (starts if keep is None else (keep.cumsum(1) - keep.long())[:, starts])
        if length > limit:
            raise ValueError(f"a row of {length} positions is longer than this model's l_max={limit}")
        if state is not None:
            counted = state.tokens[:, None] + counted
        return counted.clamp_min(0)

    def _check_next(self, tokens: Tensor, state: ModelState, cu_seqlens: Tensor | None) -> None:
        """Checks the arguments of a :meth:`forward` with a state, before any layer changes its own."""
        if not isinstance(state, ModelState) or len(state.layers) != len(self.blocks):
            given = f"{len(state.layers)} layers" if isinstance(state, ModelState) else type(state).__name__
            raise ValueError(
                f"expected a state from this model's init_state, of {len(self.blocks)} layers, got {given}"
            )
        if cu_seqlens is not None:
            raise ValueError("packed rows cannot be continued: a state has one row for each row of the batch")
        if tokens.size(0) != state.batch or tokens.size(1) < 1:
            raise ValueError(f"expected tokens of shape ({state.batch}, n), n at least 1, got {tuple(tokens.shape)}")
        dropouts = [self.dropout, *(block.dropout for block in cast("list[Block]", self.blocks))]
        drops = max(part.p if part.training else 0.0 for part in dropouts)
        if drops > 0:
            raise ValueError(f"the model is in training mode with dropout={drops}; call eval() first")
        state.check_room(tokens.size(1), f"this model's l_max={self.config.l_max}")

    @property
    def device(self) -> torch.device:
        """Where tokens are expected."""
        return self.embedding.weight.device

    def check_can_decode(self, *, needs_logits: bool) -> None:
        """Checks that this model can continue a sequence.

        Raises:
            ValueError: it has no output for each position, or with ``needs_logits`` no logits for tokens.
        """

    # Not in inference mode, whatever the caller is in: a tensor made there could not be changed outside it.
    @torch.inference_mode(False)
    @torch.no_grad()
    def init_state(self, batch: int, max_length: int | None = None) -> ModelState:
        """Returns the state of all layers before the first token.

        Args:
            batch: B.
            max_length: how many tokens may come, at most and if missing ``l_max``.

        Raises:
            ValueError: ``max_length`` above ``l_max``, a model whose output is not one for each position, or layers
                that cannot be stepped.
        """
        length = self._room(max_length)
        layers = self._each_mixer(lambda mixer: mixer.init_state(batch, length))
        return ModelState(0, length, layers, torch.zeros(batch, dtype=torch.long, device=self.device))

    def state_size(self, batch: int, max_length: int | None = None) -> StateSize:
        """Returns the bytes that :meth:`init_state` allocates, found without allocating them.

        Returns:
            ``rows``, which grows with the batch, and ``shared``, the filters', which states of a model in eval mode
            have in common.

        Raises:
            ValueError: as :meth:`init_state`.
        """
        length = self._room(max_length)
        sizes = self._each_mixer(lambda mixer: mixer.state_size(batch, length))
        return StateSize(8 * batch + sum(size.rows for size in sizes), sum(size.shared for size in sizes))

    def _room(self, max_length: int | None) -> int:
        self.check_can_decode(needs_logits=False)
        limit = self.config.l_max
        length = limit if max_length is None else max_length
        if not 1 <= length <= limit:
            raise ValueError(f"max_length must be 1 to this model's l_max={limit}, got {length}")
        return length

    def _each_mixer(self, ask: Callable[[Any], Any]) -> list[Any]:
        """What each block's mixer answers; errors name the block."""
        answers = []
        for i, block in enumerate(cast("list[Block]", self.blocks)):
            name, mixer = f"blocks.{i}.mixer", block.mixer
            if not hasattr(mixer, "init_state"):
                raise ValueError(
                    f"{name} is a {type(mixer).__name__}, which is no hyena.mixers.Mixer and has no state; "
                    "hyena.generation.generate_by_rerun works with any mixer"
                )
            try:
                with whole_parameters(mixer):
                    answers.append(ask(mixer))
            except ValueError as e:
                raise ValueError(f"{name}: {e}") from e
        return answers

    @torch.no_grad()
    def prefill(
        self,
        tokens: Tensor,
        state: ModelState,
        mask: Tensor | None = None,
        *,
        last: bool = False,
        chunk: int | None = None,
    ) -> tuple[Tensor, ModelState]:
        """Computes logits after each of the next tokens, those of :meth:`forward` on all so far.

        The model is called, so hooks run; no gradient passes through.

        Args:
            tokens: ``(B, n)``, any number of them, also after steps.
            state: changed in place.
            mask: ``(B, n)``, True or 1 = keep, as in :meth:`forward`. Rows of different lengths are padded on the left,
                if they are to be continued.
            last: only the last position's logits.
            chunk: how many of the tokens to compute at a time, all if missing: beyond the state and what is returned,
                memory is in proportion to it.

        Returns:
            Logits ``(B, n, V)``, without a head hidden states ``(B, n, D)``, with ``last`` of one position; and the
            state.

        Raises:
            ValueError: more tokens than the state was made for, or shapes that do not fit.
        """
        if chunk is not None and chunk < 1:
            raise ValueError(f"chunk must be at least 1, got {chunk}")
        if chunk is None or tokens.dim() != 2 or chunk >= tokens.size(1):
            return self(tokens, mask, state=state, last=last), state
        self._check_next(tokens, state, None)  # all of them, before the first chunk changes the state
        keep = None if mask is None else keep_from_tokenizer(mask, tokens.shape)
        whole: Tensor | None = None
        for start in range(0, tokens.size(1), chunk):
            part = slice(start, start + chunk)
            y = self(tokens[:, part], None if keep is None else keep[:, part], state=state, last=last)
            if last:
                whole = y
                continue
            if whole is None:
                whole = y.new_empty(y.size(0), tokens.size(1), *y.shape[2:])
            whole[:, part] = y
        assert whole is not None
        return whole, state

    def step(self, tokens: Tensor, state: ModelState) -> tuple[Tensor, ModelState]:
        """Computes :meth:`prefill` of one token a row: ``(B,)`` in, logits ``(B, V)`` out."""
        if tokens.dim() != 1:
            raise ValueError(f"a step takes one token a row, (B,), got {tuple(tokens.shape)}; prefill takes several")
        logits, state = self.prefill(tokens[:, None], state)
        return logits[:, 0], state

    def extend(self, l_max: int, mode: str = "continue") -> None:
        """Lets a trained model take longer rows: extends every mixer, and sets the config's ``l_max``.

        Args:
            l_max: the longest row from now on.
            mode: what becomes of the filters, see :meth:`hyena.filters.HyenaFilter.extend`.

        Raises:
            ValueError: learned positions, or a mixer that cannot be extended.
        """
        if self.positions is not None:
            raise ValueError(
                f"this model has learned positions, a table of l_max={self.config.l_max} rows, none for l_max={l_max}"
            )
        config = dataclasses.replace(self.config, l_max=l_max)
        for i, block in enumerate(cast("list[Block]", self.blocks)):
            extend = getattr(block.mixer, "extend", None)
            if not callable(extend):
                raise ValueError(
                    f"blocks.{i}.mixer is a {type(block.mixer).__name__}, which has no extend(l_max, mode)"
                )
            extend(l_max, mode)
        self.config = config

    def tie_embeddings(self) -> None:
        """Makes the output layer's weight the embedding's, if the config says so; again after what separates them."""
        if self.config.tie_embeddings and self.head is not None:
            self.head.weight = self.embedding.weight


def learned_positions(blocks: nn.ModuleList, l_max: int, d_model: int, **at: Any) -> nn.Embedding | None:
    """Returns positions to add to the embedding, if a block's mixer does not know the order of its inputs."""
    needed = any(getattr(block.mixer, "needs_positions", False) for block in cast("list[Block]", blocks))
    return nn.Embedding(l_max, d_model, **at) if needed else None
