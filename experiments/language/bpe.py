"""Byte-pair encoding: pieces of words as tokens, learned from a text; any text can be written in them.

The first 256 tokens are the bytes; each later one is a pair of earlier ones, the most frequent when it was made
(Sennrich et al. 2015, arXiv 1508.07909). Pairs do not reach over the border of two words.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter, defaultdict
from collections.abc import Iterable

Pair = tuple[int, int]

# A word and the space before it, or one character of other space.
WORD = re.compile(r" ?\S+|\s")


class BPE:
    """An encoding, by its pairs.

    Args:
        pairs: what token 256, 257, … stand for.
    """

    def __init__(self, pairs: Iterable[Pair]) -> None:
        self.pairs = list(pairs)
        self._token = {pair: 256 + i for i, pair in enumerate(self.pairs)}
        self._bytes = [bytes([i]) for i in range(256)]
        for left, right in self.pairs:
            self._bytes.append(self._bytes[left] + self._bytes[right])
        self._words: dict[str, list[int]] = {}

    @classmethod
    def learned(cls, text: str, vocabulary: int) -> BPE:
        """An encoding of at most ``vocabulary`` tokens, fewer if the text has no pair twice any more."""
        if vocabulary < 256:
            raise ValueError(f"the bytes are 256 tokens; a vocabulary of {vocabulary} does not hold them")
        counted = Counter(match.group() for match in WORD.finditer(text))
        words = [list(word.encode()) for word in counted]
        times = list(counted.values())
        counts: Counter[Pair] = Counter()
        places: defaultdict[Pair, set[int]] = defaultdict(set)  # the words that have, or had, a pair
        for i, word in enumerate(words):
            for pair in itertools.pairwise(word):
                counts[pair] += times[i]
                places[pair].add(i)
        pairs: list[Pair] = []
        while 256 + len(pairs) < vocabulary and counts:
            best = max(counts, key=lambda pair: (counts[pair], pair))
            if counts[best] < 2:
                break
            for i in places.pop(best):
                for pair in zip(words[i], words[i][1:]):
                    counts[pair] -= times[i]
                words[i] = _joined(words[i], best, 256 + len(pairs))
                for pair in zip(words[i], words[i][1:]):
                    counts[pair] += times[i]
                    places[pair].add(i)
            del counts[best]
            pairs.append(best)
        return cls(pairs)

    @property
    def vocabulary(self) -> int:
        """How many tokens there are."""
        return len(self._bytes)

    def encode(self, text: str) -> list[int]:
        """The tokens of a text."""
        found: list[int] = []
        for match in WORD.finditer(text):
            word = match.group()
            if word not in self._words:
                self._words[word] = self._encode(word)
            found += self._words[word]
        return found

    def _encode(self, word: str) -> list[int]:
        tokens = list(word.encode())
        while known := [self._token[pair] for pair in itertools.pairwise(tokens) if pair in self._token]:
            first = min(known)  # in the order they were learned
            tokens = _joined(tokens, self.pairs[first - 256], first)
        return tokens

    def decode(self, tokens: Iterable[int]) -> str:
        """The text of some tokens."""
        return b"".join(self._bytes[token] for token in tokens).decode(errors="replace")


def _joined(tokens: list[int], pair: Pair, token: int) -> list[int]:
    """``tokens`` with ``token`` in each place of ``pair``, from the left."""
    found: list[int] = []
    i = 0
    while i < len(tokens):
        if tokens[i] == pair[0] and tokens[i + 1 : i + 2] == [pair[1]]:
            found.append(token)
            i += 2
        else:
            found.append(tokens[i])
            i += 1
    return found
