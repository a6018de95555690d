"""A text file as character ids: loading, the split, batches and validation windows.

Dimensions: B batch, L context.
"""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path

import torch
from torch import Tensor

# The share of the text that is trained on, from its start; the rest is the validation split. As in nanoGPT.
TRAIN_SHARE = 0.9


@dataclasses.dataclass(frozen=True)
class Corpus:
    """Character ids of the two splits, and what each id stands for."""

    path: Path
    sha256: str
    vocabulary: str  # the character of each id, in code point order
    train: Tensor  # (characters,) int64
    validation: Tensor

    def encode(self, text: str) -> Tensor:
        """Ids of ``text``; ValueError for characters that the file does not have."""
        ids = {character: i for i, character in enumerate(self.vocabulary)}
        unknown = sorted(set(text) - set(ids))
        if unknown:
            raise ValueError(f"{self.path} has no {unknown}, so the model cannot read them")
        return torch.tensor([ids[character] for character in text])

    @property
    def start(self) -> Tensor:
        """What text begins after: a line break, or in a text without one its first character."""
        return self.encode("\n") if "\n" in self.vocabulary else self.train[:1]

    def decode(self, ids: Tensor) -> str:
        return "".join(self.vocabulary[i] for i in ids.tolist())


def load_corpus(path: Path, context: int) -> Corpus:
    """Reads a UTF-8 text file; ValueError, in one line, for a file that cannot be trained on."""
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        raise ValueError(f"{path} does not exist") from None
    except IsADirectoryError:
        raise ValueError(f"{path} is a folder, not a text file") from None
    except OSError as e:
        raise ValueError(f"{path} cannot be read: {e.strerror}") from None
    if not raw:
        raise ValueError(f"{path} is empty")
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as e:
        raise ValueError(
            f"{path} is not UTF-8 text: byte {e.start} is 0x{raw[e.start]:02x}. Convert it first, with iconv for one"
        ) from None
    vocabulary = "".join(sorted(set(text)))
    ids = {character: i for i, character in enumerate(vocabulary)}
    data = torch.tensor([ids[character] for character in text])
    train_size = int(TRAIN_SHARE * len(text))
    # Each split has to hold one window and the character after it.
    if len(text) - train_size < context + 1 or train_size < context + 1:
        raise ValueError(
            f"{path} is too short: {len(text)} characters leave {len(text) - train_size} for validation (the last "
            f"tenth), and a context of {context} needs {context + 1}"
        )
    return Corpus(path, hashlib.sha256(raw).hexdigest(), vocabulary, data[:train_size], data[train_size:])


def random_batch(data: Tensor, batch: int, context: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Windows from anywhere in ``data`` and the characters that follow each of theirs: two times (B, L)."""
    start = torch.randint(data.numel() - context, (batch, 1), generator=generator)
    at = start + torch.arange(context)  # (B, L)
    return data[at], data[at + 1]


def windows(data: Tensor, context: int) -> tuple[Tensor, Tensor]:
    """``data`` cut into windows that do not overlap, and the characters that follow: two times (windows, L).

    Every character but the first is predicted once; what does not fill a window at the end is left out.
    """
    count = (data.numel() - 1) // context
    inputs = data[: count * context].view(count, context)
    targets = data[1 : count * context + 1].view(count, context)
    return inputs, targets
