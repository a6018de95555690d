"""What a model needs to go on from what came before, and what it can do then.

Dimensions: B batch, n new positions, D channels (d_model), V vocabulary.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from torch import Tensor, nn

from hyena.generation import model, text
from hyena.generation.state import ModelState


class Decoder(nn.Module, ABC):
    """Base of models that read tokens in order: embedding, pre-norm blocks, LayerNorm, and a head or none.

    Attributes:
        config: with ``l_max`` and ``vocab_size``.
        embedding, dropout: before the first block.
        blocks: of :class:`hyena.models.Block`.
        norm: after the last.
        head: to logits, or None.
    """

    config: Any
    embedding: nn.Embedding
    dropout: nn.Dropout
    blocks: nn.ModuleList
    norm: nn.LayerNorm
    head: nn.Linear | None

    @abstractmethod
    def embed(self, tokens: Tensor, at: Tensor | None) -> Tensor:
        """What the first block reads, ``(B, n, D)``, without dropout.

        Args:
            tokens: ``(B, n)``.
            at: ``(B, n)`` or ``(n,)`` int64, the position of each in its row, padding not counted; models that have no
                use for it take None.
        """

    def check_decodes(self, *, logits: bool) -> None:
        """Raises ValueError if this model has no output for each position; with ``logits``, if it is none of tokens."""

    def init_state(self, batch: int, max_length: int | None = None) -> ModelState:
        """What the layers remember before the first token, as :meth:`hyena.HyenaOperator.init_state`.

        :func:`hyena.generation.state_size` states its bytes beforehand.

        Args:
            batch: B.
            max_length: how many tokens may come, at most and if missing ``l_max``.

        Raises:
            ValueError: ``max_length`` above ``l_max``, a model whose output is not one for each position, or layers
                that cannot be stepped.
        """
        return model.init_state(self, batch, max_length)

    def prefill(self, tokens: Tensor, state: ModelState, mask: Tensor | None = None) -> tuple[Tensor, ModelState]:
        """Logits ``(B, n, V)`` after each of the next tokens ``(B, n)``, those of ``forward`` on all so far.

        Without a head they are hidden states ``(B, n, D)``. No gradient passes through; ``state`` is changed in place.
        ``mask`` ``(B, n)``, True or 1 = keep, is as in ``forward``; rows of different lengths are padded on the left.

        Raises:
            ValueError: more tokens than the state was made for, or shapes that do not fit.
        """
        return model.advance(self, tokens, state, mask), state

    def step(self, tokens: Tensor, state: ModelState) -> tuple[Tensor, ModelState]:
        """:meth:`prefill` of one token a row: ``(B,)`` in, logits ``(B, V)`` out."""
        return model.advance(self, tokens[:, None], state)[:, 0], state

    def generate(
        self,
        prompts: Tensor | Sequence[Sequence[int] | Tensor],
        max_new_tokens: int,
        *,
        mask: Tensor | None = None,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int | None = None,
        eos: int | None = None,
        stop: Iterable[Sequence[int]] = (),
        window: int | None = None,
        callback: Callable[[Tensor], Any] | None = None,
        progress: bool = False,
    ) -> list[Tensor]:
        """Continues each prompt, a step for each token; :func:`hyena.generation.stream` is the same as an iterator.

        In eval mode and without gradients; the model is left in the mode it was in.

        Args:
            prompts: ``(B, L)``, or a list of prompts of any lengths.
            max_new_tokens: how many tokens to add at most.
            mask: ``(B, L)``, False or 0 where a prompt has padding, on whichever side.
            temperature, top_k, top_p: see :func:`hyena.generation.sample`; temperature 0 takes the likeliest token.
            seed: of the random numbers, for the same text every time; torch's own generator if missing.
            eos: the token that ends a row.
            stop: sequences of tokens that end a row.
            window: below ``l_max``; goes on past ``l_max`` by starting again from this many of the last tokens whenever
                ``l_max`` is reached. The model then forgets what came before them.
            callback: called with the next token of each row, ``(B,)``, as it is drawn; -1 for rows that have ended.
            progress: shows a progress bar (with ``tqdm``).

        Returns:
            For each row the prompt and what was added, ``eos`` or the stop sequence included, without padding.

        Raises:
            ValueError: prompts and new tokens that do not fit ``l_max``, or arguments out of range.
        """
        return text.generate(
            self,
            prompts,
            max_new_tokens,
            mask=mask,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            seed=seed,
            eos=eos,
            stop=stop,
            window=window,
            callback=callback,
            progress=progress,
        )
