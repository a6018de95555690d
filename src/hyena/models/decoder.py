"""Base of the models: embedding, blocks, norm and head, over a whole sequence or its next tokens.

Dimensions: B batch, L length, n new positions, D channels (d_model), V vocabulary.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from hyena.generation import generate, model
from hyena.generation.model import ModelState
from hyena.mixers.attention import row_starts
from hyena.mixers.base import StateSize, size_of
from hyena.mixers.masks import keep_from_tokenizer


class Decoder(nn.Module):
    """Base of models that read tokens in order: embedding, pre-norm blocks, LayerNorm, and a head or none.

    Attributes:
        config: with ``l_max`` and ``vocab_size``.
        embedding: of the tokens.
        positions: learned positions that are added to it, or None. They count the kept positions of each row, so that
            padding and packing change nothing.
        dropout: before the first block.
        blocks: of :class:`hyena.models.Block`.
        norm: after the last.
        head: to logits, or None.
    """

    config: Any
    embedding: nn.Embedding
    positions: nn.Embedding | None
    dropout: nn.Dropout
    blocks: nn.ModuleList
    norm: nn.LayerNorm
    head: nn.Linear | None

    generate = generate

    def forward(
        self,
        tokens: Tensor,
        mask: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        max_seqlen: int | None = None,
    ) -> Tensor:
        """Computes the head's output for each position.

        Args:
            tokens: ``(B, L)`` integers below ``vocab_size``.
            mask: ``(B, L)``, True or 1 = keep: a tokenizer's ``attention_mask``. With it a padded row gives what it
                gives alone, on whichever side the padding is.
            cu_seqlens: ``(rows + 1,)`` offsets of rows packed into one; then ``B = 1``.
            max_seqlen: the longest packed row, see :meth:`hyena.HyenaOperator.forward`.

        Returns:
            Logits ``(B, L, V)`` for the token after each one, or without a head hidden states ``(B, L, D)``. Outputs at
            positions that are not kept mean nothing.

        Raises:
            ValueError: an input longer than ``l_max``, or shapes that do not fit.
        """
        x = self.hidden_states(tokens, mask, cu_seqlens, max_seqlen)
        return x if self.head is None else self.head(x)

    def hidden_states(
        self,
        tokens: Tensor,
        mask: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        max_seqlen: int | None = None,
    ) -> Tensor:
        """Computes the normalised output of the last block, ``(B, L, D)``; arguments as for :meth:`forward`."""
        if tokens.dim() != 2:
            raise ValueError(f"tokens must be (B, L), got {tuple(tokens.shape)}")
        keep = None if mask is None else keep_from_tokenizer(mask, tokens.shape)
        at = None if self.positions is None else self._count(tokens, keep, cu_seqlens, max_seqlen)
        mixing = {"mask": keep, "cu_seqlens": cu_seqlens, "max_seqlen": max_seqlen}
        x = self.dropout(self.embed(tokens, at))  # (B, L, D)
        for block in self.blocks:
            if self.config.gradient_checkpointing and self.training:
                x = checkpoint(functools.partial(block, **mixing), x, use_reentrant=False)
            else:
                x = block(x, **mixing)
        return self.norm(x.to(self.norm.weight.dtype))

    def embed(self, tokens: Tensor, at: Tensor | None) -> Tensor:
        """Embeds tokens for the first block, ``(B, n, D)``, without dropout.

        Args:
            tokens: ``(B, n)``.
            at: ``(B, n)`` or ``(n,)`` int64, the position of each in its row, padding not counted; None in models
                without learned positions.
        """
        x = self.embedding(tokens)
        return x if self.positions is None else x + self.positions(at)

    def _count(self, tokens: Tensor, keep: Tensor | None, cu_seqlens: Tensor | None, longest: int | None) -> Tensor:
        """The position of each token in its row, not counting padding: ``(L,)`` or ``(B, L)``."""
        length, limit = tokens.size(1), self.config.l_max
        at = torch.arange(length, device=tokens.device)
        if cu_seqlens is not None:
            length = int(cu_seqlens.diff().max()) if longest is None else longest
            at = at - row_starts(cu_seqlens, at.numel())
        elif keep is not None:
            at = (keep.cumsum(1) - 1).clamp_min(0)
        if length > limit:
            raise ValueError(f"a row of {length} positions is longer than this model's l_max={limit}")
        return at

    @property
    def device(self) -> torch.device:
        """Where tokens are expected."""
        return self.embedding.weight.device

    def check_can_decode(self, *, needs_logits: bool) -> None:
        """Checks that this model can continue a sequence.

        Raises:
            ValueError: it has no output for each position, or with ``needs_logits`` no logits for tokens.
        """

    def init_state(self, batch: int, max_length: int | None = None) -> ModelState:
        """Returns the state of all layers before the first token.

        Args:
            batch: B.
            max_length: how many tokens may come, at most and if missing ``l_max``.

        Raises:
            ValueError: ``max_length`` above ``l_max``, a model whose output is not one for each position, or layers
                that cannot be stepped.
        """
        return model.init_state(self, batch, max_length)

    def state_size(self, batch: int, max_length: int | None = None) -> StateSize:
        """Bytes that :meth:`init_state` allocates, found without allocating them."""
        return size_of(lambda: self.init_state(batch, max_length))

    def prefill(
        self, tokens: Tensor, state: ModelState, mask: Tensor | None = None, *, last: bool = False
    ) -> tuple[Tensor, ModelState]:
        """Computes logits after each of the next tokens, those of :meth:`forward` on all so far.

        No gradient passes through.

        Args:
            tokens: ``(B, n)``, any number of them, also after steps.
            state: changed in place.
            mask: ``(B, n)``, True or 1 = keep, as in :meth:`forward`. Rows of different lengths are padded on the left,
                if they are to be continued.
            last: only the last position's logits.

        Returns:
            Logits ``(B, n, V)``, without a head hidden states ``(B, n, D)``, with ``last`` of one position; and the
            state.

        Raises:
            ValueError: more tokens than the state was made for, or shapes that do not fit.
        """
        return model.advance(self, tokens, state, mask, last=last), state

    def step(self, tokens: Tensor, state: ModelState) -> tuple[Tensor, ModelState]:
        """Computes :meth:`prefill` of one token a row: ``(B,)`` in, logits ``(B, V)`` out."""
        logits, state = self.prefill(tokens[:, None], state)
        return logits[:, 0], state
