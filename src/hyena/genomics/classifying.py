"""Class logits of sequences, of one strand or both.

Dimensions: B batch, L length.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from hyena.generation.protocol import eval_mode
from hyena.genomics.batches import MAX_TOKENS, batches, check_max_tokens, groups
from hyena.genomics.progress import Progress
from hyena.genomics.records import Record, as_record, check_sequences
from hyena.genomics.rows import Rows
from hyena.genomics.strands import check_strands
from hyena.genomics.tokenizers import Tokenizer, padded


def classify(
    model: Any,
    sequences: Sequence[str | Record],
    *,
    tokenizer: Tokenizer | None = None,
    strands: str = "forward",
    max_tokens: int = MAX_TOKENS,
    progress: bool = False,
) -> Tensor:
    """Computes class logits of each sequence, of a model with ``head="classes"``.

    Args:
        model: a :class:`hyena.models.HyenaDNA`. It runs in eval mode, without gradients, and is left in the mode it was
            in.
        sequences: letters, or records, which errors then name.
        tokenizer: the model's, :func:`hyena.genomics.tokenizer_for` if missing.
        strands: ``"forward"``, ``"reverse"``, or ``"both"``: the mean of their logits.
        max_tokens: positions that go through the model at once, padding included; a longer sequence goes alone.
        progress: shows a progress bar on a terminal.

    Returns:
        ``(number of sequences, num_classes)``, float32 or float64, on the CPU.

    Raises:
        ValueError: a model without such a head; a sequence that is empty, longer than the model's ``l_max``, or with
            letters outside the alphabet, by its name; before anything is computed.
    """
    check_sequences(sequences)
    records = [as_record(sequence, i) for i, sequence in enumerate(sequences)]
    classifying = Classifying(model, tokenizer, strands, max_tokens)
    for record in records:
        classifying.rows.check(record, classifying.directions)
    found = [torch.zeros(0, model.config.num_classes)]
    with Progress(sum(map(len, records)), "letters", shown=progress) as bar:
        for group in groups(records, len, max_tokens):
            found.append(classifying.group(group))
            bar.add(sum(map(len, group)))
    return torch.cat(found)


class Classifying:
    """The settings of :func:`classify`, for streams of records.

    Args:
        model, tokenizer, strands, max_tokens: see there.
    """

    def __init__(
        self, model: Any, tokenizer: Tokenizer | None = None, strands: str = "forward", max_tokens: int = MAX_TOKENS
    ) -> None:
        check_max_tokens(max_tokens)
        if getattr(model.config, "head", None) != "classes":
            raise ValueError(
                f"this {type(model).__name__} has head={getattr(model.config, 'head', None)!r} and gives no class "
                "logits: load it with num_labels=, or build it with head='classes'"
            )
        self.model, self.max_tokens = model, max_tokens
        self.directions, self.rows = check_strands(strands), Rows(model, tokenizer)

    @torch.no_grad()
    def group(self, records: list[Record]) -> Tensor:
        """Classifies records together, in batches by length: ``(number of records, num_classes)``."""
        tokenizer = self.rows.tokenizer
        rows = [self.rows.tokens(record, strand) for record in records for strand in self.directions]
        found: list[Tensor] = [torch.empty(0)] * len(rows)
        with eval_mode(self.model):
            for batch in batches([row.numel() for row in rows], self.max_tokens):
                tokens, mask = padded([rows[i] for i in batch], tokenizer.pad, tokenizer.padding_side)
                logits = self.model(tokens.to(self.model.device), mask.to(self.model.device)).cpu()
                for i, row in zip(batch, logits.to(torch.promote_types(logits.dtype, torch.float32)), strict=True):
                    found[i] = row
        return torch.stack(found).unflatten(0, (len(records), len(self.directions))).mean(1)
