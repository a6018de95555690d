"""Generation of sequences: prompts in, new letters out.

Dimensions: B batch, L length, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hyena.generation import generate as generate_tokens
from hyena.genomics.batches import MAX_TOKENS, check_max_tokens, groups
from hyena.genomics.progress import Progress
from hyena.genomics.records import Record, as_record, check_sequences
from hyena.genomics.rows import Rows
from hyena.genomics.tokenizers import Tokenizer


def generate(
    model: Any,
    prompts: Sequence[str | Record],
    max_new_tokens: int,
    *,
    tokenizer: Tokenizer | None = None,
    letters: str | None = "ACGT",
    start_token: int | None = None,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int | None = None,
    max_tokens: int = MAX_TOKENS,
    progress: bool = False,
) -> list[str]:
    """Continues each prompt by new letters.

    Args:
        model: a causal language model, as :class:`hyena.models.Decoder`.
        prompts: letters, or records, which errors then name.
        max_new_tokens: how many letters to add.
        tokenizer: the model's, :func:`hyena.genomics.tokenizer_for` if missing.
        letters: the only ones that are drawn; None for any token of the model, special ones among them, which then are
            left out of the text.
        start_token: is put before each prompt; see :func:`hyena.genomics.score`.
        temperature, top_k, top_p: see :func:`hyena.generation.sample`; temperature 0 takes the likeliest letter.
        seed: of the random numbers, for the same letters every time; torch's own generator if missing.
        max_tokens: positions of the prompts that go through the model at once, and of the rows that share a batch.
        progress: shows a progress bar on a terminal.

    Returns:
        The new letters of each prompt, without the prompt.

    Raises:
        ValueError: a prompt that is empty, that does not fit the model's ``l_max`` together with the new letters, or
            with letters outside the alphabet, by its name; before anything is computed.
    """
    check_sequences(prompts)
    records = [as_record(prompt, i) for i, prompt in enumerate(prompts)]
    sampling = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
    writing = Writing(model, max_new_tokens, tokenizer, letters, start_token, seed, max_tokens, sampling)
    for record in records:
        writing.rows.check(record)
    with Progress(len(records) * max_new_tokens, "letters", shown=progress) as bar:
        found = []
        for _, text in writing.stream(records):
            found.append(text)
            bar.add(max_new_tokens)
    return found


class Writing:
    """The settings of :func:`generate`, for streams of prompts.

    Args:
        model, max_new_tokens, tokenizer, letters, start_token, seed, max_tokens: see there.
        sampling: keywords for :func:`hyena.generation.sample`.
    """

    def __init__(
        self,
        model: Any,
        max_new_tokens: int,
        tokenizer: Tokenizer | None = None,
        letters: str | None = "ACGT",
        start_token: int | None = None,
        seed: int | None = None,
        max_tokens: int = MAX_TOKENS,
        sampling: dict[str, Any] | None = None,
    ) -> None:
        model.check_can_decode(needs_logits=True)
        check_max_tokens(max_tokens)
        if isinstance(max_new_tokens, bool) or not hasattr(max_new_tokens, "__index__") or max_new_tokens < 1:
            raise ValueError(f"max_new_tokens must be an integer of at least 1, got {max_new_tokens!r}")
        self.max_new_tokens, self.max_tokens, self.seed = max_new_tokens, max_tokens, seed
        self.sampling = {} if sampling is None else sampling
        # The last letter drawn is never read.
        self.rows = Rows(model, tokenizer, start_token=start_token, room=max_new_tokens - 1)
        self.allowed = None if letters is None else self._tokens_of(letters)
        self.writer = _Writer(model, self.allowed, max_tokens)

    def _tokens_of(self, letters: str) -> Tensor:
        if not letters or len(set(letters)) < len(letters):
            raise ValueError(f"letters must be different letters, got {letters!r}")
        tokens = [self.rows.tokenizer.encode(letter) for letter in letters]
        if any(token.numel() != 1 for token in tokens):
            raise ValueError(f"each of letters={letters!r} must be one token; pass a tokenizer without special tokens")
        return torch.cat(tokens)

    def stream(self, records: Iterable[Record]) -> Iterator[tuple[Record, str]]:
        """Yields prompts and their new letters, in order."""
        before = 0
        for group in groups(records, lambda record: len(record) + self.max_new_tokens, self.max_tokens):
            yield from zip(group, self.group(group, before), strict=True)
            before += len(group)

    def group(self, records: list[Record], before: int) -> list[str]:
        """Continues prompts together, before which as many came; batches are of neighbours, each with its own seed."""
        found: list[str] = []
        while len(found) < len(records):
            first, longest, number = len(found), 0, 0
            for record in records[first:]:
                longest = max(longest, len(record) + self.max_new_tokens)
                if number and (number + 1) * longest > self.max_tokens:
                    break
                number += 1
            found += self._batch(records[first : first + number], before + first)
        return found

    def _batch(self, records: list[Record], first: int) -> list[str]:
        """New letters of prompts that share a batch, of which the first has this number among all."""
        prompts = [self.rows.tokens(record) for record in records]
        seed = None if self.seed is None else self.seed + first
        rows = generate_tokens(self.writer, prompts, self.max_new_tokens, seed=seed, **self.sampling)
        return [self.rows.tokenizer.decode(row[p.numel() :].cpu()) for row, p in zip(rows, prompts, strict=True)]


class _Writer:
    """A :class:`hyena.generation.LanguageModel` that draws some tokens only, and reads long prompts in pieces.

    Args:
        model: the language model.
        allowed: ``(number,)`` the tokens that may be drawn, None for all.
        max_tokens: positions that go through the model at once.
    """

    def __init__(self, model: Any, allowed: Tensor | None, max_tokens: int) -> None:
        self.model, self.allowed, self.max_tokens = model, allowed, max_tokens
        self.config = model.config

    @property
    def device(self) -> torch.device:
        return self.model.device

    def check_can_decode(self, *, needs_logits: bool) -> None:
        self.model.check_can_decode(needs_logits=needs_logits)

    def init_state(self, batch: int, max_length: int | None = None) -> Any:
        return self.model.init_state(batch, max_length)

    def modules(self) -> Iterator[nn.Module]:
        return self.model.modules()

    def prefill(
        self, tokens: Tensor, state: Any, mask: Tensor | None = None, *, last: bool = False
    ) -> tuple[Tensor, Any]:
        chunk = max(self.max_tokens // tokens.size(0), 1)
        logits, state = self.model.prefill(tokens, state, mask, last=last, chunk=chunk)
        if self.allowed is None:
            return logits, state
        chosen = torch.full_like(logits, -torch.inf)
        allowed = self.allowed.to(logits.device)
        chosen[..., allowed] = logits[..., allowed]
        return chosen, state
