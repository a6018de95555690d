"""The two strands of DNA: reverse complements of texts and of tokens, and the augmentation that uses them.

Dimensions: B batch, L length.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from hyena.genomics.tokenizers import DNATokenizer, LetterError, Tokenizer
from hyena.mixers.masks import keep_from_tokenizer

STRANDS = ("forward", "reverse", "both")
# The letters of IUPAC for one base or several, and what pairs with them.
_LETTERS, _PAIRED = "ACGTUNRYSWKMBDHV", "TGCAANYRSWMKVHDB"
_TABLE = str.maketrans(_LETTERS + _LETTERS.lower(), _PAIRED + _PAIRED.lower())
_KNOWN = frozenset(_LETTERS + _LETTERS.lower())


def reverse_complement(sequence: str) -> str:
    """Returns the other strand, read in its own direction: ``"AACG"`` becomes ``"CGTT"``.

    Takes the letters of IUPAC, upper and lower case; U becomes A.

    Raises:
        LetterError: another letter, with its position.
    """
    if not _KNOWN.issuperset(sequence):
        at = next(i for i, letter in enumerate(sequence) if letter not in _KNOWN)
        raise LetterError(sequence[at], at + 1, f"has no complement: only {_LETTERS} have")
    return sequence.translate(_TABLE)[::-1]


def reverse_complement_tokens(tokens: Tensor, tokenizer: Tokenizer | None = None, mask: Tensor | None = None) -> Tensor:
    """Returns the other strand of each row, ``(B, L)``: letters in reverse and complemented.

    Special tokens and padding stay where they are.

    Args:
        tokens: ``(B, L)`` integers.
        tokenizer: whose letters they are, HyenaDNA's if missing.
        mask: ``(B, L)``, False or 0 where a row has padding, for tokenizers whose padding is a letter's token.

    Raises:
        ValueError: a mask of another shape, floating point, or with numbers other than 0 and 1.
    """
    paired = _paired(tokenizer or DNATokenizer()).to(tokens.device)
    known = (tokens >= 0) & (tokens < paired.numel())
    letter = known & (paired[tokens.clamp(0, paired.numel() - 1)] >= 0)
    if mask is not None:
        letter = letter & keep_from_tokenizer(mask, tokens.shape)
    rank = letter.cumsum(1) - 1
    place = torch.argsort((~letter).to(torch.uint8), dim=1, stable=True)  # the letters' positions first, in order
    source = place.gather(1, (letter.sum(1, keepdim=True) - 1 - rank).clamp(0, tokens.size(1) - 1))
    return torch.where(letter, paired[tokens.gather(1, source).clamp(0, paired.numel() - 1)], tokens)


def augment_strands(
    tokens: Tensor,
    tokenizer: Tokenizer | None = None,
    mask: Tensor | None = None,
    *,
    p: float = 0.5,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Returns each row, with probability ``p`` as its other strand: augmentation for training.

    Args:
        tokens, tokenizer, mask: as :func:`reverse_complement_tokens`.
        p: of a row.
        generator: where the random numbers come from.

    Raises:
        ValueError: ``p`` outside [0, 1].
    """
    if not 0 <= p <= 1:
        raise ValueError(f"p must lie in [0, 1], got {p}")
    drawn = torch.rand(tokens.size(0), 1, generator=generator, device=tokens.device)
    return torch.where(drawn < p, reverse_complement_tokens(tokens, tokenizer, mask), tokens)


def check_strands(strands: str) -> tuple[str, ...]:
    """Returns the strands that a wish for them names, of forward and reverse.

    Raises:
        ValueError: another word.
    """
    if strands not in STRANDS:
        raise ValueError(f"strands must be one of {', '.join(STRANDS)}, got {strands!r}")
    return ("forward", "reverse") if strands == "both" else (strands,)


def _paired(tokenizer: Tokenizer) -> Tensor:
    """For each token the one of the paired letter, -1 for what is no letter."""
    if isinstance(tokenizer, DNATokenizer):
        return _letter_pairs(tokenizer.letters, len(tokenizer.special))
    return _byte_pairs(tokenizer.vocab_size)


@functools.lru_cache
def _byte_pairs(size: int) -> Tensor:
    pairs = torch.full((size,), -1)
    for letter in _KNOWN:
        pairs[ord(letter)] = ord(letter.translate(_TABLE))
    return pairs


@functools.lru_cache
def _letter_pairs(letters: str, first: int) -> Tensor:
    pairs = torch.full((first + len(letters),), -1)
    for i, letter in enumerate(letters):
        pairs[first + i] = first + letters.index(letter.translate(_TABLE))
    return pairs
