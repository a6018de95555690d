"""Records as rows of tokens for one model, checked: letters, lengths and vocabulary.

Dimensions: L length.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hyena.genomics.batches import context
from hyena.genomics.records import Record
from hyena.genomics.strands import reverse_complement
from hyena.genomics.tokenizers import LetterError, Tokenizer, check_vocabulary, tokenizer_for


class Rows:
    """What a model reads of a record.

    Args:
        model: with ``config.vocab_size`` and ``config.l_max``.
        tokenizer: the model's, :func:`hyena.genomics.tokenizer_for` if missing.
        start_token: before every record, None for none.
        unread: how many tokens at the end the model does not read.
        room: how many more positions the model has to have room for.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Tokenizer | None = None,
        *,
        start_token: int | None = None,
        unread: int = 0,
        room: int = 0,
    ) -> None:
        self.tokenizer = tokenizer_for(model) if tokenizer is None else tokenizer
        check_vocabulary(model, self.tokenizer)
        limit = model.config.vocab_size
        if start_token is not None and (isinstance(start_token, bool) or not 0 <= start_token < limit):
            raise ValueError(f"start_token must be a token of the model, 0 to {limit - 1}, got {start_token!r}")
        self.l_max, self.start_token, self.unread, self.room = context(model), start_token, unread, room

    def tokens(self, record: Record, strand: str = "forward") -> Tensor:
        """Returns the tokens of a record, ``(L,)``.

        Raises:
            ValueError: as :meth:`check`.
        """
        try:
            sequence = reverse_complement(record.sequence) if strand == "reverse" else record.sequence
            tokens = self.tokenizer.encode(sequence)
        except LetterError as error:
            where = f" of the {strand} strand" if strand == "reverse" else ""
            raise ValueError(f"{record}: {error}{where}") from None
        if self.start_token is not None:
            tokens = torch.cat([torch.tensor([self.start_token]), tokens])
        self._check_length(record, tokens.numel())
        return tokens

    def check(self, record: Record, strands: tuple[str, ...] = ("forward",)) -> None:
        """Checks a record without keeping anything of it.

        Raises:
            ValueError: an empty record, one that is too short or longer than the model's context, or letters outside
                the alphabet, or without a complement: with the record's name, its file and line.
        """
        for strand in strands:
            self.tokens(record, strand)

    def _check_length(self, record: Record, length: int) -> None:
        if len(record) == 0:
            raise ValueError(f"{record} is empty; expected at least one letter")
        read = length - self.unread
        if read < 1:
            raise ValueError(
                f"{record} has {len(record)} letter, which nothing comes before; give two letters or more, or a "
                "start_token"
            )
        if self.l_max is not None and read + self.room > self.l_max:
            most = self.l_max - self.room - (length - len(record)) + self.unread
            limit = f"this model's context is l_max={self.l_max}"
            if most < 1:
                raise ValueError(f"{record}: {self.room + 1} new letters do not fit, {limit}: ask for fewer")
            if self.room:
                raise ValueError(
                    f"{record} has {len(record)} letters, {limit}: with {self.room + 1} new letters give it at most "
                    f"{most}, or ask for fewer"
                )
            raise ValueError(
                f"{record} has {len(record)} letters, {limit}: give it at most {most} letters, for example in pieces "
                "(--window, hyena.genomics.windows)"
            )
