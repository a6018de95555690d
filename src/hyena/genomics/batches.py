"""Ragged batches: sequences of any lengths through a causal model, a bounded number of positions at a time.

Dimensions: B batch, L length, n positions of a piece, V vocabulary, D channels.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor

from hyena.generation.protocol import eval_mode
from hyena.genomics.tokenizers import padded

MAX_TOKENS = 16_384
"""Positions that go through a model at once, unless told otherwise."""
_GROUP_ROWS, _GROUP_PASSES = 128, 8  # the sequences that are sorted by length together

Item = TypeVar("Item")


@dataclasses.dataclass(frozen=True)
class Piece:
    """A model's output for the next positions of a batch.

    Args:
        start: how many positions came before.
        lengths: of each row, how many of these n are its own: it may have ended, and the rest is padding.
        output: ``(B, n, ·)``, whatever was asked for.
    """

    start: int
    lengths: list[int]
    output: Any


def check_max_tokens(max_tokens: int) -> None:
    """Raises ``ValueError`` for a number of positions that is no integer, or below 1."""
    if isinstance(max_tokens, bool) or not hasattr(max_tokens, "__index__") or max_tokens < 1:
        raise ValueError(f"max_tokens must be an integer of at least 1, got {max_tokens!r}")


def groups(items: Iterable[Item], length: Callable[[Item], int], max_tokens: int) -> Iterator[list[Item]]:
    """Cuts a stream into groups, of which each is computed as a whole.

    Where a group ends depends on what is in it alone, so that a run that goes on after a kill has the groups, and
    so the batches and the rounding, of one that was not interrupted.
    """
    group: list[Item] = []
    total = 0
    for item in items:
        if group and (len(group) >= _GROUP_ROWS or total + length(item) > _GROUP_PASSES * max_tokens):
            yield group
            group, total = [], 0
        group.append(item)
        total += length(item)
    if group:
        yield group


def batches(lengths: list[int], max_tokens: int) -> list[list[int]]:
    """Puts rows into batches of at most ``max_tokens`` positions, padding included; a longer row is one by itself.

    Returns:
        Indices of ``lengths``, the longest rows first: if memory is short, that shows at once.
    """
    found: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        # The first row of a batch is its longest.
        if found and (len(found[-1]) + 1) * lengths[found[-1][0]] <= max_tokens:
            found[-1].append(index)
        else:
            found.append([index])
    return found


def pieces(
    model: Any, rows: list[Tensor], max_tokens: int, compute: Callable[..., Any] | None = None
) -> Iterator[Piece]:
    """Runs a batch through a causal model, in pieces with a carried state if it is too long.

    Args:
        model: a :class:`hyena.models.Decoder`. It runs in eval mode, without gradients, and is left in the mode it was
            in.
        rows: tokens ``(L,)`` each, of any lengths.
        max_tokens: positions of a piece, over all rows.
        compute: called as the model is, in its place.

    Raises:
        ValueError: a row that has to be cut, and a model that cannot be stepped.
    """
    run = model if compute is None else compute
    batch = padded(rows, 0, "right")
    length, size = batch.tokens.size(1), max(max_tokens // len(rows), 1)
    state = None
    for start in range(0, length, size):
        tokens = batch.tokens[:, start : start + size].to(model.device)
        keep = batch.mask[:, start : start + size]
        mask = None if bool(keep.all()) else keep.to(model.device)
        # Entered anew for each piece: a generator that yields inside would leave its caller without gradients.
        with eval_mode(model), torch.no_grad():
            if length <= size:
                output = run(tokens, mask)
            else:
                state = _state(model, len(rows), length, max_tokens) if state is None else state
                output = run(tokens, mask, state=state)
        yield Piece(start, keep.sum(1).tolist(), output)


def _state(model: Any, batch: int, length: int, max_tokens: int) -> Any:
    try:
        return model.init_state(batch, length)
    except ValueError as error:
        raise ValueError(
            f"a row of {length} positions was to be cut into pieces of max_tokens={max_tokens}, but {error}; "
            f"max_tokens={batch * length} takes it whole"
        ) from None


def context(model: Any) -> int | None:
    """The most positions that a model reads, None if any number."""
    return getattr(model.config, "l_max", None)
