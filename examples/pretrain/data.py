"""Text and FASTA files as one stream of bytes, cut into blocks: read as it is needed, never held whole.

A token is a byte. Every document, a text file or a record of a FASTA file, ends with a zero byte.
"""

from __future__ import annotations

import dataclasses
import gzip
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from hyena.genomics import FastaError, read_fasta

VOCABULARY = 256
END = b"\0"  # of a document
FASTA = (".fa", ".fna", ".fasta")
CHUNK = 1 << 20


@dataclasses.dataclass(frozen=True)
class Block:
    """A piece of the stream: ``length`` tokens and the one after them, fewer at the stream's end.

    The last token of a block is the first of the next, so each token but the stream's first is predicted once.
    """

    index: int  # in the stream's order
    tokens: bytes

    @property
    def targets(self) -> int:
        return len(self.tokens) - 1


def blocks(paths: Sequence[str], length: int) -> Iterator[Block]:
    """The blocks of one pass over the files.

    Raises:
        ValueError: a file that is missing, empty, damaged or no text, with its name and the place.
    """
    index, held = 0, bytearray()
    for piece in stream(paths):
        held += piece
        while len(held) > length:
            yield Block(index, bytes(held[: length + 1]))
            del held[:length]
            index += 1
    if len(held) > 1:
        yield Block(index, bytes(held))


def stream(paths: Sequence[str]) -> Iterator[bytes]:
    """All documents of all files, in order, in pieces of at most a mebibyte."""
    for name in paths:
        path = Path(name)
        stem = path.with_suffix("") if path.suffix == ".gz" else path
        with _named(path):
            yield from _fasta(path) if stem.suffix in FASTA else _text(path)


def size_of(path: Path) -> int:
    """Bytes of a file; ValueError if it is missing."""
    with _named(path):
        return path.stat().st_size


@contextmanager
def _named(path: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise ValueError(f"{path} does not exist") from None
    except OSError as e:
        raise ValueError(f"{path} cannot be read: {e.strerror or e}") from None


def _fasta(path: Path) -> Iterator[bytes]:
    try:
        for record in read_fasta(path, upper=True):
            letters = record.sequence.encode("ascii")
            for at in range(0, len(letters), CHUNK):
                yield letters[at : at + CHUNK]
            yield END
    except FastaError as e:
        raise ValueError(str(e)) from None


def _text(path: Path) -> Iterator[bytes]:
    with path.open("rb") as raw:
        packed = raw.read(2) == b"\x1f\x8b"
        raw.seek(0)
        file = gzip.GzipFile(fileobj=raw) if packed else raw
        at = 0
        try:
            while piece := file.read(CHUNK):
                if (zero := piece.find(END)) >= 0:
                    raise ValueError(f"{path} is not text: byte {at + zero} is 0, which here ends a document")
                at += len(piece)
                yield piece
        except (EOFError, zlib.error, gzip.BadGzipFile) as e:
            raise ValueError(f"{path}: the gzip data are damaged or end too early, after {at} bytes ({e})") from None
        if at == 0:
            raise ValueError(f"{path} is empty")
        yield END
