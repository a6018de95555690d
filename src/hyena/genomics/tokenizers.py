"""Tokenizers of the DNA models: one token a letter, or a byte.

Dimensions: B batch, L length.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hyena.models import HyenaDNA, StripedHyena


class Encoded(NamedTuple):
    """Rows of tokens of one length, as models take them: ``model(*tokenizer(texts))``.

    Args:
        tokens: ``(B, L)`` int64.
        mask: ``(B, L)`` bool, False where a row has padding.
    """

    tokens: Tensor
    mask: Tensor


class LetterError(ValueError):
    """A letter that a tokenizer has no token for.

    Args:
        letter: which.
        position: where, from 1 on.
        why: what is taken instead.
    """

    def __init__(self, letter: str, position: int, why: str) -> None:
        super().__init__(f"{letter!r} at position {position} {why}")
        self.letter, self.position, self.why = letter, position, why


class Tokenizer(ABC):
    """Base of the tokenizers: a table from bytes to tokens.

    Attributes:
        vocab_size: how many tokens there are.
        alphabet: the letters that :meth:`encode` takes, None for any text.
        pad: the token of padding.
        padding_side: where :meth:`__call__` puts it, ``"left"`` or ``"right"``.
    """

    vocab_size: int
    alphabet: str | None
    pad: int
    padding_side: str

    @abstractmethod
    def encode(self, text: str) -> Tensor:
        """Returns the tokens of a text, ``(L,)`` int64.

        Raises:
            LetterError: a letter outside the alphabet, with its position.
        """

    @abstractmethod
    def decode(self, tokens: Tensor | Sequence[int], *, skip_special: bool = True) -> str:
        """Returns the text of tokens ``(L,)``."""

    def __call__(self, texts: Iterable[str]) -> Encoded:
        """Encodes texts of any lengths as one batch, padded on the tokenizer's side.

        Raises:
            ValueError: no text, or an empty one.
        """
        if isinstance(texts, str):
            raise ValueError("a tokenizer takes a list of texts; encode takes one")
        return padded([self.encode(text) for text in texts], self.pad, self.padding_side)


def padded(rows: list[Tensor], pad: int, side: str) -> Encoded:
    """Puts rows of tokens ``(L,)`` of any lengths under each other.

    Raises:
        ValueError: no row, or an empty one.
    """
    if not rows or any(row.numel() == 0 for row in rows):
        raise ValueError(f"every row needs at least one token, got lengths {[row.numel() for row in rows]}")
    longest = max(row.numel() for row in rows)
    tokens = torch.full((len(rows), longest), pad, dtype=torch.long)
    mask = torch.zeros(len(rows), longest, dtype=torch.bool)
    for i, row in enumerate(rows):
        at = slice(longest - row.numel(), None) if side == "left" else slice(0, row.numel())
        tokens[i, at], mask[i, at] = row, True
    return Encoded(tokens, mask)


class ByteTokenizer(Tokenizer):
    """The vocabulary of Evo and Evo 2: a token is a byte of UTF-8, and there are 512 of them.

    Args:
        alphabet: the letters that are taken, any text if missing.

    Attributes:
        eos: 0, the end of a document. Evo is given it before a sequence that it scores, Evo 2 is not.
    """

    vocab_size = 512
    pad = 1
    eos = 0
    padding_side = "right"

    def __init__(self, alphabet: str | None = None) -> None:
        if alphabet is not None and (not alphabet or not alphabet.isascii()):
            raise ValueError(f"an alphabet is ASCII letters, got {alphabet!r}")
        self.alphabet = alphabet

    def encode(self, text: str) -> Tensor:
        """See :meth:`Tokenizer.encode`."""
        if self.alphabet is None:
            return _bytes(text.encode("utf-8"))
        table = torch.full((256,), -1)
        known = _bytes(self.alphabet.encode("ascii"))
        table[known] = known
        return _looked_up(text, table, self.alphabet)

    def decode(self, tokens: Tensor | Sequence[int], *, skip_special: bool = True) -> str:
        """Returns the text of tokens; what is no UTF-8 becomes U+FFFD.

        Args:
            tokens: ``(L,)``.
            skip_special: leaves out ``eos`` and ``pad``.

        Raises:
            ValueError: tokens above 255, which are no bytes.
        """
        ids = _ids(tokens, 256, "which are no bytes")
        return bytes(i for i in ids if not (skip_special and i in (self.eos, self.pad))).decode("utf-8", "replace")


class DNATokenizer(Tokenizer):
    """HyenaDNA's vocabulary: 7 special tokens, then A, C, G, T, N; padding on the left.

    The released tokenizer puts ``[CLS]`` and ``[SEP]`` around a sequence, and the code that trained the models neither
    of them: ``special_tokens`` is for models that were fine-tuned with the former. It reads a letter that it does not
    know, lower case among them, as ``[UNK]``; here that is asked for by ``unknown="[UNK]"``. N is a letter, here
    as there; the code that trained the models showed them ``[PAD]`` in its place, and did not count it.

    Args:
        special_tokens: puts ``[CLS]`` before and ``[SEP]`` after each sequence.
        upper: takes lower-case letters (soft-masked repeats) as upper-case ones.
        unknown: what becomes of other letters: ``"raise"``, or the token that they are read as, ``"N"`` or
            ``"[UNK]"``.
    """

    special = ("[CLS]", "[SEP]", "[BOS]", "[MASK]", "[PAD]", "[RESERVED]", "[UNK]")
    letters = "ACGTN"
    vocab_size = len(special) + len(letters)
    pad = special.index("[PAD]")
    eos = special.index("[SEP]")
    padding_side = "left"

    def __init__(self, *, special_tokens: bool = False, upper: bool = False, unknown: str = "raise") -> None:
        if unknown not in ("raise", "N", "[UNK]"):
            raise ValueError(f"unknown must be 'raise', 'N' or '[UNK]', got {unknown!r}")
        self.special_tokens, self.upper, self.unknown = special_tokens, upper, unknown
        self.alphabet = self.letters if unknown == "raise" else None
        other = {"raise": -1, "N": self.token("N"), "[UNK]": self.token("[UNK]")}[unknown]
        self._table = torch.full((256,), other)
        for letter in self.letters:
            for each in (letter, letter.lower()) if upper else (letter,):
                self._table[ord(each)] = self.token(letter)
        if self.alphabet is not None and upper:
            self.alphabet += self.letters.lower()

    def token(self, name: str) -> int:
        """Returns the token of a letter, or of a special name such as ``"[MASK]"``.

        Raises:
            ValueError: there is none.
        """
        names = [*self.special, *self.letters]
        if name not in names:
            raise ValueError(f"no token {name!r}, only {', '.join(names)}")
        return names.index(name)

    def encode(self, text: str) -> Tensor:
        """See :meth:`Tokenizer.encode`."""
        tokens = _looked_up(text, self._table, self.letters)
        if not self.special_tokens:
            return tokens
        ends = torch.tensor([self.token("[CLS]"), self.token("[SEP]")])
        return torch.cat([ends[:1], tokens, ends[1:]])

    def decode(self, tokens: Tensor | Sequence[int], *, skip_special: bool = True) -> str:
        """Returns the letters of tokens.

        Args:
            tokens: ``(L,)``.
            skip_special: leaves special tokens out; otherwise they are written by name, ``[SEP]``.

        Raises:
            ValueError: tokens that the vocabulary does not have.
        """
        names = [*([""] * len(self.special) if skip_special else self.special), *self.letters]
        return "".join(names[i] for i in _ids(tokens, self.vocab_size, f"the vocabulary has {self.vocab_size}"))


def tokenizer_for(model: Any) -> Tokenizer:
    """Returns the tokenizer that a released model was trained with.

    Raises:
        ValueError: a model of another kind, or of another vocabulary: its tokenizer is to be passed.
    """
    model = getattr(model, "_orig_mod", model)  # of torch.compile
    size = getattr(model.config, "vocab_size", None)
    if isinstance(model, HyenaDNA) and size == DNATokenizer.vocab_size:
        return DNATokenizer()
    if isinstance(model, StripedHyena) and size == ByteTokenizer.vocab_size:
        return ByteTokenizer()
    raise ValueError(
        f"a {type(model).__name__} with vocab_size={size} does not say which tokens it was trained with: pass "
        f"tokenizer=, for example DNATokenizer() ({DNATokenizer.vocab_size} tokens) or ByteTokenizer() "
        f"({ByteTokenizer.vocab_size})"
    )


def check_vocabulary(model: Any, tokenizer: Tokenizer) -> None:
    """Raises ``ValueError`` for a tokenizer with more tokens than a model knows."""
    if tokenizer.vocab_size > model.config.vocab_size:
        raise ValueError(
            f"the {type(tokenizer).__name__} has {tokenizer.vocab_size} tokens, the model vocab_size="
            f"{model.config.vocab_size}"
        )


def _bytes(text: bytes) -> Tensor:
    return torch.frombuffer(bytearray(text), dtype=torch.uint8).long() if text else torch.zeros(0, dtype=torch.long)


def _looked_up(text: str, table: Tensor, alphabet: str) -> Tensor:
    """The tokens of a text by a table of 256, where -1 is a letter that is not taken."""
    # What is not ASCII becomes a byte that no alphabet has, so that positions stay what they are.
    ascii_only = text if text.isascii() else re.sub(r"[^\x00-\x7f]", "\xff", text)
    tokens = table[_bytes(ascii_only.encode("latin-1"))]
    if bool((tokens < 0).any()):
        at = int((tokens < 0).nonzero()[0, 0])
        letter = text[at]
        why = f"is not one of {alphabet}"
        if letter.upper() in alphabet and letter.isascii():
            why += "; lower-case letters (soft-masked repeats) are to be made upper case: text.upper(), or upper=True"
        raise LetterError(letter, at + 1, why)
    return tokens


def _ids(tokens: Tensor | Sequence[int], limit: int, why: str) -> list[int]:
    ids = tokens.tolist() if isinstance(tokens, Tensor) else list(tokens)
    if wrong := sorted({i for i in ids if not 0 <= i < limit}):
        raise ValueError(f"tokens {', '.join(map(str, wrong[:10]))} cannot be decoded: {why}")
    return ids
