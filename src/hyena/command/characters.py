"""Models of characters: what ``hyena train`` and the examples save, their tokenizer, and text on a terminal."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hyena.checkpoints.files import load_file
from hyena.generation import stream
from hyena.genomics import Record
from hyena.genomics.tokenizers import ByteTokenizer, DNATokenizer, LetterError, Tokenizer
from hyena.genomics.writing import Writing
from hyena.models import CausalLM, CausalLMConfig

CHECKPOINT = "checkpoint.pt"
"""The file in the folder of a run."""
_ENTRIES = ("config", "model", "vocabulary")
_BEFORE = 4  # tokens that new ones are decoded with


class CharacterTokenizer(Tokenizer):
    """A token is a character of a vocabulary.

    Args:
        vocabulary: the character of each token.
    """

    padding_side = "left"
    pad = 0

    def __init__(self, vocabulary: str) -> None:
        if not vocabulary or len(set(vocabulary)) < len(vocabulary):
            raise ValueError(f"a vocabulary is different characters, got {vocabulary!r}")
        self.vocabulary, self.vocab_size, self.alphabet = vocabulary, len(vocabulary), vocabulary
        self._numbers = {character: i for i, character in enumerate(vocabulary)}

    def encode(self, text: str) -> Tensor:
        """See :meth:`Tokenizer.encode`."""
        for i, character in enumerate(text):
            if character not in self._numbers:
                raise LetterError(character, i + 1, f"is not one of the {self.vocab_size} that the model has seen")
        return torch.tensor([self._numbers[character] for character in text], dtype=torch.long)

    def decode(self, tokens: Tensor | Sequence[int], *, skip_special: bool = True) -> str:
        """See :meth:`Tokenizer.decode`; there are no special tokens."""
        ids = tokens.tolist() if isinstance(tokens, Tensor) else list(tokens)
        if wrong := sorted({i for i in ids if not 0 <= i < self.vocab_size}):
            raise ValueError(f"tokens {wrong[:10]} cannot be decoded: there are {self.vocab_size}")
        return "".join(self.vocabulary[i] for i in ids)

    @property
    def start(self) -> str:
        """What text begins after: a line break, or the first character where there is none."""
        return "\n" if "\n" in self.vocabulary else self.vocabulary[0]


def find_checkpoint(path: str) -> Path | None:
    """The file of a model of characters, at a path of it or of its folder; None for anything else."""
    place = Path(path)
    file = place / CHECKPOINT if place.is_dir() else place
    beside = file.parent / "config.json"
    return file if file.suffix == ".pt" and file.is_file() and not beside.exists() else None


def load_characters(file: Path, device: torch.device, dtype: torch.dtype | None) -> tuple[CausalLM, CharacterTokenizer]:
    """Loads a model of characters, in eval mode, and its tokenizer.

    Raises:
        ValueError: a file of something else, damaged, or with numbers that are not finite.
    """
    saved = load_file(file, mapped=True)
    if missing := [name for name in _ENTRIES if name not in saved]:
        raise ValueError(
            f"{file} has no {', '.join(missing)}: a model of characters is {{'config': …, "
            "'model': …, 'vocabulary': …}}, as `hyena train` saves it; other checkpoints need a config.json beside "
            "them, or --config"
        )
    config, weights, vocabulary = (saved[name] for name in _ENTRIES)
    if not isinstance(config, Mapping) or not isinstance(vocabulary, str):
        raise ValueError(
            f"{file} is damaged: its config is a {type(config).__name__}, its vocabulary {vocabulary!r:.40}"
        )
    model = CausalLM(CausalLMConfig.from_dict(dict(config)))
    tokenizer = CharacterTokenizer(vocabulary)
    if tokenizer.vocab_size != model.config.vocab_size:
        raise ValueError(
            f"{file} has a vocabulary of {tokenizer.vocab_size} characters and a model of {model.config.vocab_size} "
            "tokens"
        )
    try:
        model.load_state_dict(weights)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"{file} does not fit its own config: {str(error).splitlines()[-1].strip()}") from None
    if odd := [name for name, p in model.named_parameters() if not p.isfinite().all()]:
        raise ValueError(f"{file}: {odd[0]} has entries that are not finite")
    return model.to(device=device, dtype=dtype).eval(), tokenizer


def write_text(given: argparse.Namespace, model: Any, tokenizer: Tokenizer, records: Iterable[Record]) -> None:
    """Prints each prompt and what the model makes of it, character by character as it comes.

    Raises:
        ValueError: prompts with other letters, or that do not fit the model.
    """
    if given.samples < 1:
        raise ValueError(f"--samples must be at least 1, got {given.samples}")
    sampling = {"temperature": given.temperature, "top_k": given.top_k, "top_p": given.top_p}
    writing = Writing(
        model, given.length, tokenizer, given.letters, given.start_token, given.seed, given.max_tokens, sampling
    )
    limit, number = model.config.l_max, 0
    window = given.window
    if window is None and not isinstance(tokenizer, (ByteTokenizer, DNATokenizer)):
        window = max(1, limit // 2)
    for record in records:
        try:
            prompt = tokenizer.encode(record.sequence)
        except LetterError as error:
            raise ValueError(f"{record}: {error}") from None
        if given.start_token is not None:
            prompt = torch.cat([torch.tensor([given.start_token]), prompt])
        for sample in range(1, given.samples + 1):
            if given.samples > 1 and not given.quiet:
                print(f"== {record.name}, {sample} of {given.samples}", file=sys.stderr, flush=True)
            tokens = stream(writing.writer, [prompt], given.length, window=window, seed=given.seed + number, **sampling)
            print(record.sequence.lstrip("\n"), end="", flush=True)
            for text in _as_they_come(tokenizer, prompt, tokens):
                print(text, end="", flush=True)
            print()
            number += 1


def _as_they_come(tokenizer: Tokenizer, prompt: Tensor, tokens: Iterable[Tensor]) -> Iterator[str]:
    """Yields the text of new tokens, decoded with some before them: pieces of words join to what none gives alone.

    What ends in the middle of a character waits for the rest of it.
    """
    drawn = prompt.tolist()
    shown = len(drawn)
    for token in tokens:
        drawn.append(int(token))
        first = max(shown - _BEFORE, 0)
        known, text = (tokenizer.decode(drawn[first:end]) for end in (shown, len(drawn)))
        if not text.endswith("\ufffd"):
            yield text[len(known) :]
            shown = len(drawn)
    if shown < len(drawn):
        yield tokenizer.decode(drawn[shown:])
