"""Hidden states of sequences, pooled over their letters: of one strand or both.

Dimensions: B batch, L length, n positions of a piece, D channels.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from hyena.genomics.batches import MAX_TOKENS, batches, check_max_tokens, groups, pieces
from hyena.genomics.progress import Progress
from hyena.genomics.records import Record, as_record, check_sequences
from hyena.genomics.rows import Rows
from hyena.genomics.strands import check_strands
from hyena.genomics.tokenizers import Tokenizer

Layer = int | str
NORM = "norm"
POOLINGS = ("mean", "max", "last", "none")


def embed(
    model: Any,
    sequences: Sequence[str | Record],
    layers: Sequence[Layer] = (NORM,),
    *,
    tokenizer: Tokenizer | None = None,
    pooling: str = "mean",
    strands: str = "forward",
    max_tokens: int = MAX_TOKENS,
    progress: bool = False,
) -> dict[Layer, Any]:
    """Computes hidden states of each sequence, pooled over its own positions: padding takes no part.

    Args:
        model: a :class:`hyena.models.Decoder`, with a head or without.
        sequences: letters, or records, which errors then name.
        layers: which hidden states: 0 for what the first block is given, ``i`` for what block ``i`` of 1 to
            ``num_layers`` returns, ``"norm"`` for that of the last, normalised.
        tokenizer: the model's, :func:`hyena.genomics.tokenizer_for` if missing.
        pooling: ``"mean"``, ``"max"``, ``"last"`` (a causal model's last position has seen all others), or ``"none"``.
        strands: ``"forward"``, ``"reverse"`` (the reverse complement), or ``"both"``: their mean, and without pooling
            that of a letter and of what pairs with it.
        max_tokens: positions that go through the model at once; longer sequences are read in pieces that carry the
            model's state, exactly.
        progress: shows a progress bar on a terminal.

    Returns:
        For each layer ``(number of sequences, D)``, without pooling a list of ``(L, D)``; float32 or float64, on the
        CPU.

    Raises:
        ValueError: a layer that the model does not have; a sequence that is empty, longer than the model's ``l_max``,
            or with letters outside the alphabet, by its name; before anything is computed.
    """
    check_sequences(sequences)
    records = [as_record(sequence, i) for i, sequence in enumerate(sequences)]
    embedding = Embedding(model, layers, tokenizer, pooling, strands, max_tokens)
    for record in records:
        embedding.rows.check(record, embedding.directions)
    found: dict[Layer, list[Tensor]] = {layer: [] for layer in embedding.layers}
    with Progress(sum(map(len, records)), "letters", shown=progress) as bar:
        for record, states in embedding.stream(records):
            for layer, state in zip(embedding.layers, states, strict=True):
                found[layer].append(state)
            bar.add(len(record))
    if pooling == "none":
        return dict(found)
    return {layer: torch.stack(states) if states else torch.zeros(0, 0) for layer, states in found.items()}


class Embedding:
    """The settings of :func:`embed`, for streams of records.

    Args:
        model, layers, tokenizer, pooling, strands, max_tokens: see there.
    """

    def __init__(
        self,
        model: Any,
        layers: Sequence[Layer] = (NORM,),
        tokenizer: Tokenizer | None = None,
        pooling: str = "mean",
        strands: str = "forward",
        max_tokens: int = MAX_TOKENS,
    ) -> None:
        check_max_tokens(max_tokens)
        if pooling not in POOLINGS:
            raise ValueError(f"pooling must be one of {', '.join(POOLINGS)}, got {pooling!r}")
        self.model, self.pooling, self.max_tokens = model, pooling, max_tokens
        self.layers = check_layers(model, layers)
        self.directions = check_strands(strands)
        self.rows = Rows(model, tokenizer)

    def stream(self, records: Iterable[Record]) -> Iterator[tuple[Record, list[Tensor]]]:
        """Yields records and, for each layer, their hidden states, in order."""
        for group in groups(records, len, self.max_tokens):
            yield from zip(group, self.group(group), strict=True)

    def group(self, records: list[Record]) -> list[list[Tensor]]:
        """Embeds records together, in batches by length: for each record a state of each layer."""
        rows = [self.rows.tokens(record, strand) for record in records for strand in self.directions]
        found: list[list[Tensor]] = [[] for _ in rows]
        for batch in batches([row.numel() for row in rows], self.max_tokens):
            for i, states in zip(batch, self._batch([rows[i] for i in batch]), strict=True):
                if self.pooling == "none" and self.directions[i % len(self.directions)] == "reverse":
                    states = [state.flip(0) for state in states]
                found[i] = states
        size = len(self.directions)
        return [
            [torch.stack(each).mean(0) for each in zip(*found[i * size : (i + 1) * size], strict=True)]
            for i in range(len(records))
        ]

    def _batch(self, rows: list[Tensor]) -> list[list[Tensor]]:
        """For each row, the pooled states of each layer."""
        pools = [[_Pool(self.pooling) for _ in self.layers] for _ in rows]

        def compute(*inputs: Any, **keywords: Any) -> list[Tensor]:
            return hidden_states(self.model, self.layers, *inputs, **keywords)

        for piece in pieces(self.model, rows, self.max_tokens, compute):
            for states, at in zip(piece.output, range(len(self.layers)), strict=True):
                for i, n in enumerate(piece.lengths):
                    if n > 0:
                        pools[i][at].add(states[i, :n])
        return [[pool.result() for pool in each] for each in pools]


def hidden_states(
    model: Any, layers: Sequence[Layer], tokens: Tensor, mask: Tensor | None = None, state: Any = None
) -> list[Tensor]:
    """Computes the hidden states ``(B, L, D)`` of several layers in one pass.

    Args:
        model: a :class:`hyena.models.Decoder`.
        layers: see :func:`embed`.
        tokens, mask, state: as for :meth:`hyena.models.Decoder.forward`.
    """
    found: dict[Layer, Tensor] = {}

    def keep(layer: Layer, x: Tensor) -> None:
        found[layer] = x

    with contextlib.ExitStack() as hooks:
        for layer in set(layers) - {NORM}:
            if layer == 0:
                handle = model.blocks[0].register_forward_pre_hook(lambda _, inputs: keep(0, inputs[0]))
            else:
                handle = model.blocks[int(layer) - 1].register_forward_hook(
                    lambda _, inputs, output, layer=layer: keep(layer, output)
                )
            hooks.callback(handle.remove)
        found[NORM] = model.hidden_states(tokens, mask, state=state)
    return [found[layer] for layer in layers]


def check_layers(model: Any, layers: Sequence[Layer]) -> tuple[Layer, ...]:
    """Returns the layers that are asked for.

    Raises:
        ValueError: none, one twice, or one that the model does not have.
    """
    if isinstance(layers, str) or not hasattr(layers, "__iter__"):
        raise ValueError(f"layers is a list, got {layers!r}: pass [{layers!r}]")
    number, wanted = len(model.blocks), tuple(layers)
    wrong = [
        layer
        for layer in wanted
        if layer != NORM and (isinstance(layer, (bool, str)) or not isinstance(layer, int) or not 0 <= layer <= number)
    ]
    if wrong or not wanted or len(set(wanted)) < len(wanted):
        raise ValueError(
            f"layers must be different ones of 0 (what the first block is given), 1 to {number} (what a block returns) "
            f"and {NORM!r} (the last, normalised), got {list(wanted)}"
        )
    return wanted


class _Pool:
    """Hidden states ``(n, D)`` of one row, piece by piece, to what its pooling makes of all."""

    def __init__(self, kind: str) -> None:
        self.kind, self.count = kind, 0
        self.value: Tensor | None = None
        self.parts: list[Tensor] = []
        self.dtype = torch.float32

    def add(self, x: Tensor) -> None:
        self.dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
        self.count += x.size(0)
        if self.kind == "none":
            self.parts.append(x.to("cpu", self.dtype))
        elif self.kind == "last":
            self.value = x[-1]
        else:
            # In float64, so that the sum of pieces is that of the whole.
            new = x.sum(0, dtype=torch.float64) if self.kind == "mean" else x.amax(0)
            old = self.value
            self.value = new if old is None else old + new if self.kind == "mean" else torch.maximum(old, new)

    def result(self) -> Tensor:
        if self.kind == "none":
            return torch.cat(self.parts)
        assert self.value is not None  # a row has a position
        return (self.value / self.count if self.kind == "mean" else self.value).to("cpu", self.dtype)
