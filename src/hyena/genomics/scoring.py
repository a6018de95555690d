"""Log-likelihoods of sequences under a causal model, of one strand or both.

Dimensions: B batch, L length, n positions of a piece, V vocabulary.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from hyena.genomics.batches import MAX_TOKENS, batches, check_max_tokens, groups, pieces
from hyena.genomics.progress import Progress
from hyena.genomics.records import Record, as_record, check_sequences
from hyena.genomics.rows import Rows
from hyena.genomics.strands import check_strands
from hyena.genomics.tokenizers import Tokenizer, padded


@dataclasses.dataclass(frozen=True)
class Score:
    """How likely a sequence is under a model.

    Args:
        log_likelihood: in nats, the sum over its letters; of both strands, the mean of their two sums.
        letters: how many letters were predicted; one less than there are without a token before the first.
        strands: the sum of each strand that was asked for, ``"forward"`` and ``"reverse"``.
        per_letter: of each strand, if asked for: the log-likelihood of each predicted letter, in its direction.
    """

    log_likelihood: float
    letters: int
    strands: dict[str, float]
    per_letter: dict[str, Tensor] | None = None

    @property
    def mean(self) -> float:
        """Nats a letter."""
        return self.log_likelihood / self.letters

    @property
    def perplexity(self) -> float:
        """``exp(-mean)``: 4 for letters drawn at random from A, C, G, T."""
        return math.exp(-self.mean)


def score(
    model: Any,
    sequences: Sequence[str | Record],
    *,
    tokenizer: Tokenizer | None = None,
    strands: str = "forward",
    start_token: int | None = None,
    per_letter: bool = False,
    max_tokens: int = MAX_TOKENS,
    progress: bool = False,
) -> list[Score]:
    """Computes the log-likelihood of each sequence, ``sum_t log p(x_t | x_<t)``, exactly and with any batch.

    Sequences share batches, and padding changes nothing. One that is longer than ``max_tokens`` is read in pieces of
    that length, each going on from the model's state, which gives what the whole gives, to rounding.

    Args:
        model: a causal language model, with logits for tokens: a :class:`hyena.models.Decoder`.
        sequences: letters, or records, which errors then name.
        tokenizer: the model's, :func:`hyena.genomics.tokenizer_for` if missing.
        strands: ``"forward"``, ``"reverse"`` (the reverse complement), or ``"both"`` and their mean.
        start_token: is put before the first letter, which is then predicted, too. Evo takes ``ByteTokenizer.eos``, 0.
            Without it the first letter counts as given.
        per_letter: also returns the log-likelihood of each letter.
        max_tokens: positions that go through the model at once. Less takes less memory.
        progress: shows a progress bar on a terminal.

    Returns:
        Scores, in the order of the sequences.

    Raises:
        ValueError: a sequence that is empty, too short to predict a letter of, longer than the model's ``l_max``, or
            with letters outside the alphabet, by its name; before anything is computed.
    """
    check_sequences(sequences)
    records = [as_record(sequence, i) for i, sequence in enumerate(sequences)]
    scoring = Scoring(model, tokenizer, strands, start_token, per_letter, max_tokens)
    for record in records:
        scoring.rows.check(record, scoring.directions)
    with Progress(sum(map(len, records)), "letters", shown=progress) as bar:
        found = []
        for record, each in scoring.stream(records):
            found.append(each)
            bar.add(len(record))
    return found


class Scoring:
    """The settings of :func:`score`, for streams of records.

    Args:
        model, tokenizer, strands, start_token, per_letter, max_tokens: see there.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Tokenizer | None = None,
        strands: str = "forward",
        start_token: int | None = None,
        per_letter: bool = False,
        max_tokens: int = MAX_TOKENS,
    ) -> None:
        model.check_can_decode(needs_logits=True)
        check_max_tokens(max_tokens)
        self.model, self.per_letter, self.max_tokens = model, per_letter, max_tokens
        self.directions = check_strands(strands)
        # The last letter is predicted, and never read.
        self.rows = Rows(model, tokenizer, start_token=start_token, unread=1)

    def stream(self, records: Iterable[Record]) -> Iterator[tuple[Record, Score]]:
        """Yields records and their scores, in order."""
        for group in groups(records, len, self.max_tokens):
            yield from zip(group, self.group(group), strict=True)

    def group(self, records: list[Record]) -> list[Score]:
        """Scores records together, in batches by length."""
        rows = [self.rows.tokens(record, strand) for record in records for strand in self.directions]
        sums: list[float] = [0.0] * len(rows)
        letters: list[Tensor | None] = [None] * len(rows)
        for batch in batches([row.numel() - 1 for row in rows], self.max_tokens):
            for i, found in zip(batch, self._batch([rows[i] for i in batch]), strict=True):
                sums[i] = float(found.double().sum())
                letters[i] = found if self.per_letter else None
        size = len(self.directions)
        scores = []
        for i in range(len(records)):
            at = slice(i * size, (i + 1) * size)
            strands = dict(zip(self.directions, sums[at], strict=True))
            each = dict(zip(self.directions, letters[at], strict=True)) if self.per_letter else None
            mean = sum(strands.values()) / size
            scores.append(Score(mean, rows[i * size].numel() - 1, strands, each))  # type: ignore[arg-type]
        return scores

    def _batch(self, rows: list[Tensor]) -> list[Tensor]:
        """Log-likelihoods ``(L - 1,)`` of the tokens of each row after the first."""
        targets = padded([row[1:] for row in rows], 0, "right").tokens
        found: Tensor | None = None
        for piece in pieces(self.model, [row[:-1] for row in rows], self.max_tokens):
            at = slice(piece.start, piece.start + piece.output.size(1))
            values = log_likelihoods(piece.output, targets[:, at].to(piece.output.device))
            found = torch.empty(targets.shape, dtype=values.dtype) if found is None else found
            found[:, at] = values
        assert found is not None  # a row has a position
        return [each[: row.numel() - 1] for each, row in zip(found, rows, strict=True)]


def log_likelihoods(logits: Tensor, targets: Tensor) -> Tensor:
    """Log-likelihoods in nats: logits ``(…, V)`` and targets ``(…)`` to ``(…)``, in float32 or float64."""
    logits = logits if logits.dtype == torch.float64 else logits.float()
    return logits.log_softmax(-1).gather(-1, targets[..., None])[..., 0]
