"""Folders of ``save_pretrained``: language models of this library's Auto classes, with the tokenizer beside them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hyena.genomics.tokenizers import LetterError, Tokenizer

_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "tokenizer.model")


class PretrainedTokenizer(Tokenizer):
    """A tokenizer of ``transformers``, without the special tokens that it would add.

    Args:
        folder: where it was saved.

    Raises:
        FileNotFoundError: there is none.
    """

    padding_side = "left"
    alphabet = None

    def __init__(self, folder: Path) -> None:
        from transformers import AutoTokenizer

        if not any((folder / name).is_file() for name in _FILES):
            raise FileNotFoundError(
                f"{folder} has a model and no tokenizer ({', '.join(_FILES)}): save one there with "
                "tokenizer.save_pretrained"
            )
        self._tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        self.vocab_size = len(self._tokenizer)
        self.pad = self._tokenizer.pad_token_id or 0

    def encode(self, text: str) -> Tensor:
        """See :meth:`Tokenizer.encode`."""
        ids = self._tokenizer.encode(text, add_special_tokens=False)
        unknown = self._tokenizer.unk_token_id
        if unknown is not None and unknown in ids:
            for i, letter in enumerate(text):
                if unknown in self._tokenizer.encode(letter, add_special_tokens=False):
                    raise LetterError(letter, i + 1, "has no token")
        return torch.tensor(ids, dtype=torch.long)

    def decode(self, tokens: Tensor | Sequence[int], *, skip_special: bool = True) -> str:
        """See :meth:`Tokenizer.decode`."""
        ids = tokens.tolist() if isinstance(tokens, Tensor) else list(tokens)
        return self._tokenizer.decode(ids, skip_special_tokens=skip_special)

    @property
    def start(self) -> str:
        """What text begins after, where no prompt is given."""
        raise ValueError("give --prompt: this model's tokenizer does not say what text begins with")


def is_pretrained(path: str) -> bool:
    """Whether a path is the folder of a language model that ``save_pretrained`` wrote for this library's classes."""
    config = Path(path) / "config.json"
    try:
        values = json.loads(config.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(values, dict) and values.get("model_type") == "hyena"


def load_pretrained(path: str, device: torch.device, dtype: torch.dtype | None) -> tuple[Any, PretrainedTokenizer]:
    """Loads a model, in eval mode, and its tokenizer.

    Raises:
        ModuleNotFoundError: no ``transformers``.
        ValueError: a model of another task.
        OSError: no weights, or no tokenizer, in the folder.
    """
    try:
        import transformers

        from hyena.integrations.auto import HyenaForCausalLM
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f'{path} is a model of transformers: pip install "hyena[transformers]"', name=error.name
        ) from error
    folder = Path(path)
    made = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("architectures") or []
    if made and "HyenaForCausalLM" not in made:
        raise ValueError(f"{path} holds a {', '.join(made)}: text is written by a HyenaForCausalLM")
    tokenizer = PretrainedTokenizer(folder)
    transformers.utils.logging.disable_progress_bar()  # of loading, between the text
    options: dict[str, Any] = {} if dtype is None else {"dtype": dtype}
    model = HyenaForCausalLM.from_pretrained(folder, local_files_only=True, **options)
    return model.to_hyena().to(device).eval(), tokenizer
