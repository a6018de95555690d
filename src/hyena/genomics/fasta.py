"""FASTA files, plain or gzip: read strictly, so that what is malformed is said with file and line; and written."""

from __future__ import annotations

import gzip
import os
import re
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, cast

from hyena.genomics.records import Record

_GZIP = b"\x1f\x8b"
# What is read back as another record, or not at all.
_NO_LETTER = re.compile(r"[^!-=?-~]")
_SHOWN = 40  # characters of a line that an error quotes


class FastaError(ValueError):
    """A FASTA file that is malformed, with file, line and what was expected.

    Args:
        file: path.
        line: from 1 on.
        problem: what was found, and what was expected.
    """

    def __init__(self, file: str, line: int, problem: str) -> None:
        super().__init__(f"{file}, line {line}: {problem}")
        self.file, self.line = file, line


def read_fasta(path: str | os.PathLike, *, alphabet: str | None = None, upper: bool = False) -> Iterator[Record]:
    """Reads the records of a FASTA file one by one.

    A record is a header, ``>`` with a name and perhaps a description, and at least one line of letters. Empty lines
    mean nothing. Gzip is known by the file's first bytes, whatever it is called.

    Args:
        path: of the file.
        alphabet: the letters that are taken; any printable ASCII character if missing.
        upper: takes lower-case letters (soft-masked repeats) as upper-case ones.

    Yields:
        Records in the file's order.

    Raises:
        FastaError: letters before the first header, a header without a name, a record without letters, a character
            outside the alphabet, damaged gzip data, or no record at all: with file, line and what was expected.
        OSError: no such file, or one that cannot be read.
    """
    file, number = os.fspath(path), 0
    header: tuple[str, str, int] | None = None
    parts: list[str] = []
    for number, line in _lines(file):
        text = line.rstrip(b" \t\r\n")
        if not text:
            continue
        if text[:1] == b">":
            if header is not None:
                yield _record(header, parts, file)
            header, parts = _header(text, file, number), []
            continue
        if header is None:
            looks = " (it looks like FASTQ, which has qualities: convert it to FASTA)" if text[:1] == b"@" else ""
            raise FastaError(
                file, number, f"expected a header, a line that starts with '>', got {_quoted(text)}{looks}"
            )
        parts.append(_letters(text, file, number, header[0], alphabet, upper))
    if header is None:
        raise FastaError(
            file, max(number, 1), "expected a header, a line that starts with '>', got the end of the file"
        )
    yield _record(header, parts, file)


def write_fasta(path: str | os.PathLike, records: Iterable[Record], *, width: int = 70) -> None:
    """Writes records as a FASTA file; gzip if the path ends in ``.gz``.

    Args:
        path: of the file.
        records: any.
        width: letters of a line.

    Raises:
        ValueError: a name, a description or letters that would not be read back as they are.
    """
    if width < 1:
        raise ValueError(f"width must be at least 1, got {width}")
    name = os.fspath(path)
    with gzip.open(name, "wb") if name.endswith(".gz") else Path(name).open("wb") as stream:
        for record in records:
            cast("BinaryIO", stream).write(fasta_text(record, width).encode())


def fasta_text(record: Record, width: int = 70) -> str:
    """Returns a record as lines of a FASTA file, from which :func:`read_fasta` reads the same record.

    Raises:
        ValueError: a name or description that no header can have, a record without letters, or with something else than
            letters, with its place.
    """
    title = f"{record.name} {record.description}".rstrip()
    if not record.name or record.name.split() != [record.name] or "\n" in title or "\r" in title:
        raise ValueError(f"{record.name!r} cannot be the name of a FASTA record: it is one word, without line breaks")
    if _words(title) != [word for word in (record.name, record.description) if word]:
        raise ValueError(
            f"{record.description!r} cannot be the description of {record}: it has no space at its start or end"
        )
    if not record.sequence:
        raise ValueError(f"{record} has no letters")
    if odd := _NO_LETTER.search(record.sequence):
        raise ValueError(
            f"{record} has {odd.group()!r} at {odd.start() + 1} of {len(record)}: a FASTA file has printable ASCII "
            "characters without spaces, and '>' alone where a header begins"
        )
    rows = [record.sequence[i : i + width] for i in range(0, len(record), width)]
    return "\n".join([">" + title, *rows, ""])


def _words(title: str) -> list[str]:
    """Name and description of a header, as they are read."""
    return title.rstrip(" \t\r\n").split(maxsplit=1)


def _lines(file: str) -> Iterator[tuple[int, bytes]]:
    """Numbered lines of a file, which is unpacked if it is gzip."""
    number = 0
    with Path(file).open("rb") as raw:
        packed = raw.read(2) == _GZIP
        raw.seek(0)
        stream = gzip.GzipFile(fileobj=raw) if packed else raw
        try:
            for number, line in enumerate(cast("BinaryIO", stream), 1):
                yield number, line
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise FastaError(
                file, number + 1, f"the gzip data are damaged or end too early ({error}); expected a whole gzip file"
            ) from None


def _header(text: bytes, file: str, number: int) -> tuple[str, str, int]:
    try:
        words = _words(text[1:].decode("utf-8"))
    except UnicodeDecodeError:
        raise FastaError(file, number, f"expected a header in UTF-8, got {_quoted(text)}") from None
    if not words or text[1:2].isspace():
        raise FastaError(file, number, f"expected a name right after '>', got {_quoted(text)}")
    return words[0], words[1] if len(words) > 1 else "", number


def _letters(text: bytes, file: str, number: int, name: str, alphabet: str | None, upper: bool) -> str:
    """A line of letters, checked."""
    text = text.upper() if upper else text
    if alphabet is None:
        good = bytes(range(33, 127))
        expected = "expected letters only, without spaces"
    else:
        good = alphabet.encode("ascii")
        expected = f"expected only letters of {alphabet}"
    if rest := text.translate(None, good):
        at = next(i for i, byte in enumerate(text) if byte not in good)
        odd = chr(rest[0]) if rest[0] < 128 else f"\\x{rest[0]:02x}"
        hint = ""
        if alphabet is not None and odd.islower() and odd.upper() in alphabet:
            hint = "; upper=True (--upper) takes lower-case letters, which are soft-masked repeats, as upper-case ones"
        raise FastaError(file, number, f"record {name!r} has {odd!r} in column {at + 1}; {expected}{hint}")
    return text.decode("ascii")


def _record(header: tuple[str, str, int], parts: list[str], file: str) -> Record:
    name, description, number = header
    if not parts:
        raise FastaError(file, number, f"record {name!r} is empty; expected letters on the lines after its header")
    return Record(name, "".join(parts), description, file, number)


def _quoted(text: bytes) -> str:
    shown = text[:_SHOWN].decode("ascii", "backslashreplace")
    return repr(shown + ("…" if len(text) > _SHOWN else ""))
