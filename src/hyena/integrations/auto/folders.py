"""Files of a model that ``transformers`` would load: in a folder, in its cache, or on the Hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor
from transformers.utils import cached_file

from hyena.checkpoints.files import load_shards, read_weights

# Keywords of from_pretrained that say where files come from.
_WHERE = ("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder", "proxies")
_WEIGHTS = ("model.safetensors", "pytorch_model.bin")


def split(kwargs: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Keywords of ``from_pretrained`` that say where files come from, and the others."""
    where = {key: value for key, value in kwargs.items() if key in _WHERE}
    return where, {key: value for key, value in kwargs.items() if key not in _WHERE}


def find(name: Any, file: str, where: dict[str, Any]) -> str | None:
    """The path of a file, or None if the model has no such."""
    try:
        return cached_file(
            name, file, _raise_exceptions_for_missing_entries=False, _raise_exceptions_for_connection_errors=False,
            **where,
        )  # fmt: skip
    except OSError:
        return None


def weights(name: Any, where: dict[str, Any]) -> dict[str, Tensor]:
    """The tensors of a model, of one file or of shards.

    Raises:
        FileNotFoundError: there are none.
    """
    for file in _WEIGHTS:
        if (path := find(name, file, where)) is not None:
            return read_weights(path)
        if (path := find(name, f"{file}.index.json", where)) is not None:
            return read_weights(load_shards(Path(path), lambda shard: Path(find(name, shard, where) or shard)))
    raise FileNotFoundError(f"{name} has none of {', '.join(_WEIGHTS)}, or shards of them")
