"""What ``hyena train`` reads: a text file or FASTA records as numbers of characters.

Dimensions: B batch, L context.
"""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import zlib
from pathlib import Path

import torch
from torch import Tensor

from hyena.genomics import read_fasta

SEPARATOR = "\n"
"""Between FASTA records."""
_FASTA = (".fa", ".fasta", ".fna", ".ffn")
_MOST_CHARACTERS = 4096  # different ones: more are no text of an alphabet, but a file of another kind


@dataclasses.dataclass(frozen=True)
class Corpus:
    """Characters as numbers.

    Args:
        path: of the file.
        sha256: of its bytes.
        vocabulary: the character of each number, in code point order.
        train, validation: ``(characters,)`` int64, the start of the file and its end.
    """

    path: Path
    sha256: str
    vocabulary: str
    train: Tensor
    validation: Tensor


def read_corpus(path: Path, context: int, share: float = 0.9) -> Corpus:
    """Reads a file; FASTA by its name (.fa, .fasta, .fna, .ffn, also .gz), anything else as UTF-8 text (also .gz).

    Args:
        path: of the file.
        context: the length of a window.
        share: how much of it, from the start, is trained on.

    Raises:
        ValueError: a file that cannot be trained on, in one line.
        OSError: a file that cannot be read.
    """
    if path.is_dir():
        raise ValueError(f"{path} is a folder, not a text or FASTA file")
    raw = path.read_bytes()
    text = _fasta(path) if path.name.removesuffix(".gz").lower().endswith(_FASTA) else _text(path, raw)
    vocabulary = "".join(sorted(set(text)))
    if len(vocabulary) > _MOST_CHARACTERS:
        raise ValueError(f"{path} has {len(vocabulary)} different characters, more than {_MOST_CHARACTERS}")
    split = int(share * len(text))
    if min(split, len(text) - split) < context + 1:
        raise ValueError(
            f"{path} is too short: {len(text)} characters are {split} to train on and {len(text) - split} to validate, "
            f"and --context {context} needs {context + 1} of each"
        )
    numbers = {character: i for i, character in enumerate(vocabulary)}
    data = torch.tensor([numbers[character] for character in text])
    return Corpus(path, hashlib.sha256(raw).hexdigest(), vocabulary, data[:split], data[split:])


def _fasta(path: Path) -> str:
    return "".join(record.sequence + SEPARATOR for record in read_fasta(path, alphabet=None))


def _text(path: Path, raw: bytes) -> str:
    try:
        return (gzip.decompress(raw) if path.suffix == ".gz" else raw).decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text: byte {error.start} is 0x{error.object[error.start]:02x}") from None
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{path} is no whole gzip file: {error}") from None


def random_batch(data: Tensor, batch: int, context: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Windows from anywhere in ``data`` and the characters after each of theirs: two times ``(B, L)``."""
    start = torch.randint(data.numel() - context, (batch, 1), generator=generator)
    at = start + torch.arange(context)
    return data[at], data[at + 1]


def windows(data: Tensor, context: int, most: int) -> tuple[Tensor, Tensor]:
    """Up to ``most`` windows spread over ``data``, which do not overlap, and the characters after each of theirs."""
    count = (data.numel() - 1) // context
    first = torch.arange(count)[:: max(1, -(-count // most))] * context
    at = first[:, None] + torch.arange(context)
    return data[at], data[at + 1]
