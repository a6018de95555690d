"""The texts as tokens: Shakespeare's characters, and WikiText in pieces of words.

WikiText-2 is trained on its validation file, because the training file (10 MB) is not shipped, and tested on its test
file. WikiText-103 is not shipped: it is read where somebody has put it.
"""

from __future__ import annotations

import dataclasses
import functools
import gzip
import math
from pathlib import Path

import torch
from torch import Tensor

from experiments.language.bpe import BPE

HERE = Path(__file__).resolve().parent
SHAKESPEARE = HERE.parents[1] / "examples" / "shakespeare" / "tinyshakespeare.txt"
TRAIN_SHARE = 0.9  # of Shakespeare, from its start

WIKITEXT_103 = Path("out/data/wikitext-103")  # holds train.txt and test.txt, if anything

# Tokens of WikiText. The 218,000 words of 13,777 kinds that WikiText-2 is trained on are too few to learn words from,
# most of which come once or twice; characters make rows that hold a sentence or two. Pieces are between, and can write
# every word of the test file.
PIECES = {"wikitext-2": 2048, "wikitext-103": 8192}


@dataclasses.dataclass(frozen=True)
class Text:
    """A text to train on and one to test on, and the sizes that losses are brought to.

    Attributes:
        name: of the text.
        vocabulary: how many tokens there are.
        train, test: token ids, int64.
        test_bytes: bytes of the test part in UTF-8.
        test_words: its words, and one end for each line, as perplexities a word are published; None of characters.
    """

    name: str
    vocabulary: int
    train: Tensor
    test: Tensor
    test_bytes: int
    test_words: int | None = None

    def bits_a_byte(self, loss: float) -> float:
        """What a loss in nats a token is in bits a byte of the test part."""
        return loss * self.test.numel() / self.test_bytes / math.log(2)

    def word_perplexity(self, loss: float) -> float | None:
        """What a loss in nats a token is as the perplexity of a word."""
        return None if self.test_words is None else math.exp(loss * self.test.numel() / self.test_words)


@functools.cache
def load(name: str, limit: int | None = None) -> Text:
    """A text by its name; of ``limit`` characters a part, if that is given."""
    if name == "shakespeare":
        whole = SHAKESPEARE.read_text()
        cut = int(TRAIN_SHARE * len(whole))
        train, test = whole[:cut][:limit], whole[cut:][:limit]
        ids = {character: i for i, character in enumerate(sorted(set(whole)))}
        tokens = [torch.tensor([ids[c] for c in part]) for part in (train, test)]
        return Text(name, len(ids), tokens[0], tokens[1], len(test.encode()))
    if name == "wikitext-2":
        train, test = (_unpacked(f"wikitext2-{part}.txt.gz")[:limit] for part in ("valid", "test"))
    elif name == "wikitext-103":
        train, test = ((WIKITEXT_103 / f"{part}.txt").read_text()[:limit] for part in ("train", "test"))
    else:
        raise ValueError(f"no text {name!r}; there are shakespeare and {', '.join(PIECES)}")
    return in_pieces(name, train, test, PIECES[name] if limit is None else 256 + PIECES[name] // 16)


def in_pieces(name: str, train: str, test: str, vocabulary: int) -> Text:
    """Two texts in tokens that are learned from the first."""
    bpe = BPE.learned(train, vocabulary)
    tokens = [torch.tensor(bpe.encode(part)) for part in (train, test)]
    words = len(test.split()) + test.count("\n")
    return Text(name, bpe.vocabulary, tokens[0], tokens[1], len(test.encode()), words)


def _unpacked(file: str) -> str:
    return gzip.decompress((HERE / file).read_bytes()).decode()


def batch(tokens: Tensor, rows: int, length: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Rows from anywhere in the text and what follows each position: ``(rows, length)`` both."""
    start = torch.randint(tokens.numel() - length, (rows, 1), generator=generator)
    at = start + torch.arange(length)
    return tokens[at], tokens[at + 1]


def windows(tokens: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """The text in rows that do not overlap, and what follows each position; a rest at the end is left out."""
    count = (tokens.numel() - 1) // length
    return tokens[: count * length].view(count, length), tokens[1 : count * length + 1].view(count, length)
