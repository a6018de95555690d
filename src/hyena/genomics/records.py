"""Named sequences: what a record is, and what errors call it."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Iterator


@dataclasses.dataclass(frozen=True)
class Record:
    """One sequence and where it is from.

    Args:
        name: the first word of a FASTA header.
        sequence: the letters.
        description: the rest of the header.
        file: path of the file that it was read from, or empty.
        line: of its header there, from 1 on.
    """

    name: str
    sequence: str
    description: str = ""
    file: str = ""
    line: int = 0

    def __str__(self) -> str:
        """What an error calls it."""
        return f"{self.file}, line {self.line}: record {self.name!r}" if self.file else f"record {self.name!r}"

    def __len__(self) -> int:
        return len(self.sequence)


def as_record(sequence: str | Record, number: int) -> Record:
    """Returns a record, whose name is a number if it has none.

    Args:
        sequence: letters, or a record.
        number: of it among others, from 0 on.

    Raises:
        TypeError: neither.
    """
    if isinstance(sequence, Record):
        return sequence
    if isinstance(sequence, str):
        return Record(str(number), sequence)
    raise TypeError(f"a sequence is a str or a Record, got a {type(sequence).__name__} (number {number})")


def check_sequences(sequences: object) -> None:
    """Raises ``TypeError`` for one sequence in the place of several."""
    if isinstance(sequences, (str, bytes, Record)):
        raise TypeError(f"sequences is a list of them, got one {type(sequences).__name__}: pass [sequence]")


def windows(
    records: Iterable[Record], size: int, step: int | None = None, *, to_the_end: bool = False
) -> Iterator[Record]:
    """Cuts records into pieces of ``size`` letters, named ``name:first-last`` (from 1 on, both included).

    A record that is shorter is one piece. Letters at the end of a longer one that fill no piece are left out, unless
    ``to_the_end``.

    Args:
        records: any.
        size: letters of a piece.
        step: letters from the start of one to the start of the next, ``size`` if missing.
        to_the_end: adds a last piece that ends where the record does, wherever it starts.

    Raises:
        ValueError: a size or step below 1; or ``to_the_end`` with a step above the size, which leaves out others.
    """
    step = size if step is None else step
    if size < 1 or step < 1:
        raise ValueError(f"size and step must be at least 1, got {size} and {step}")
    if to_the_end and step > size:
        raise ValueError(f"pieces of {size} letters every {step} leave letters out: step must be at most {size}")
    for record in records:
        last = max(len(record) - size, 0)
        starts = range(0, last + 1, step)
        for start in itertools.chain(starts, [last] if to_the_end and starts[-1] != last else []):
            piece = record.sequence[start : start + size]
            name = f"{record.name}:{start + 1}-{start + len(piece)}"
            yield dataclasses.replace(record, name=name, sequence=piece)
