"""FASTA files and prompts of a run: checked before anything is computed, then read again as they are needed."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator
from pathlib import Path

from hyena.genomics import Record, read_fasta, windows

_AMBIGUOUS = "RYSWKMBDHV"


@dataclasses.dataclass(frozen=True)
class Inputs:
    """What a run reads.

    Args:
        files: paths of FASTA files.
        prompts: sequences from the command line, in place of files.
        alphabet: the letters that are taken, None for any.
        upper: takes lower-case letters as upper-case ones.
        iupac_to_n: reads IUPAC's letters for several bases as N.
        window, step: cuts records into pieces, see :func:`hyena.genomics.windows`; the last ends with its record.
    """

    files: tuple[str, ...]
    prompts: tuple[str, ...] = ()
    alphabet: str | None = "ACGTN"
    upper: bool = False
    iupac_to_n: bool = False
    window: int | None = None
    step: int | None = None

    def records(self) -> Iterator[Record]:
        """Yields all records, in order.

        Raises:
            ValueError: as :func:`hyena.genomics.read_fasta`, and sizes of pieces below 1.
        """
        whole = self._whole_records()
        return whole if self.window is None else windows(whole, self.window, self.step, to_the_end=True)

    def _whole_records(self) -> Iterator[Record]:
        alphabet = self.alphabet
        if self.iupac_to_n and alphabet is not None:
            alphabet += _AMBIGUOUS
        to_n = str.maketrans(_AMBIGUOUS + _AMBIGUOUS.lower(), "N" * 2 * len(_AMBIGUOUS))
        for number, prompt in enumerate(self.prompts, 1):
            yield Record(f"prompt{number}", prompt.upper() if self.upper else prompt)
        for file in self.files:
            for record in read_fasta(file, alphabet=alphabet, upper=self.upper):
                if self.iupac_to_n:
                    record = dataclasses.replace(record, sequence=record.sequence.translate(to_n))
                yield record

    def survey(self) -> Survey:
        """Reads everything once, for its errors and sizes.

        Raises:
            ValueError: as :meth:`records`.
        """
        count = letters = 0
        longest: Record | None = None
        shortest: Record | None = None
        for record in self.records():
            count += 1
            letters += len(record)
            longest = record if longest is None or len(record) > len(longest) else longest
            shortest = record if shortest is None or len(record) < len(shortest) else shortest
        if longest is None or shortest is None:
            raise ValueError("nothing to read: give FASTA files or prompts")
        return Survey(count, letters, longest, shortest)

    def fingerprint(self) -> dict[str, str]:
        """Returns the SHA-256 of each file, by its path."""
        found = {}
        for file in self.files:
            digest = hashlib.sha256()
            with Path(file).open("rb") as stream:
                while block := stream.read(1 << 20):
                    digest.update(block)
            found[file] = digest.hexdigest()
        return found


@dataclasses.dataclass(frozen=True)
class Survey:
    """How much there is to read.

    Args:
        records, letters: how many.
        longest, shortest: the first of these.
    """

    records: int
    letters: int
    longest: Record
    shortest: Record
