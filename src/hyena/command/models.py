"""Models of the command line: whose checkpoint a folder is, and how it is opened."""

from __future__ import annotations

import hashlib
import warnings
from pathlib import Path
from typing import Any

import torch

from hyena.checkpoints import load_hyenadna, load_striped_hyena
from hyena.checkpoints.files import read_config
from hyena.checkpoints.striped import PUBLISHED
from hyena.command.devices import device_of

_LARGE = 1 << 20  # files above this are known by their size alone


def open_model(path: str, config: str | None = None, *, head: str, device: str | None, dtype: str | None) -> Any:
    """Loads a checkpoint, in eval mode.

    Args:
        path: of its folder, or of its weights.
        config: path of its settings, or the name of a published StripedHyena; ``config.json`` beside it if missing.
        head: of a HyenaDNA: ``"lm"`` for logits, ``"auto"`` for what the checkpoint has.
        device: where to, a GPU if there is one.
        dtype: of the weights, as stored if missing.

    Raises:
        ValueError: a config of no model that is known here, or weights that do not fit.
        OSError: no such file.
    """
    where, kind = device_of(device), dtype_of(dtype)
    source = str(_config_beside(path)) if config is None else config
    is_named = source in PUBLISHED or source.endswith((".yml", ".yaml"))
    values = {} if is_named else read_config(source)
    if is_named or "attn_layer_idxs" in values:
        return load_striped_hyena(path, source, dtype=kind, device_map=str(where))
    if _is_hyenadna(values):
        with warnings.catch_warnings():
            # Nothing is trained here, so a head that starts at random would answer at random.
            warnings.filterwarnings("error", message="the checkpoint has no classification head")
            try:
                model = load_hyenadna(path, values, head=head)
            except UserWarning:
                raise ValueError(f"{path} has no layer of classes, which its config asks for") from None
        return model.to(device=where, dtype=kind).eval()
    raise ValueError(
        f"{source} is the config of no model that is known here: expected HyenaDNA's (the original code's or the -hf "
        f"models'), StripedHyena's, Evo's or Evo 2's; got the keys {', '.join(sorted(values)[:20])}"
    )


def dtype_of(name: str | None) -> torch.dtype | None:
    """The dtype of --dtype."""
    return None if name is None else getattr(torch, name)


def _is_hyenadna(config: dict[str, Any]) -> bool:
    return config.get("model_type") == "hyenadna" or "layer" in config or {"max_seq_len", "filter_order"} <= set(config)


def check_exists(path: str) -> None:
    """Raises FileNotFoundError for a checkpoint that is not there."""
    if not Path(path).exists():
        raise FileNotFoundError(f"{path} does not exist (nothing is downloaded); --model is the folder of a checkpoint")


def _config_beside(path: str) -> Path:
    check_exists(path)
    place = Path(path)
    config = (place if place.is_dir() else place.parent) / "config.json"
    if not config.is_file():
        raise FileNotFoundError(
            f"{path} has no config.json beside it: give one by --config, or a published model's name"
        )
    return config


def fingerprint(path: str) -> dict[str, str]:
    """Returns what is known of a model's files without reading large ones: their sizes, or SHA-256."""
    place = Path(path)
    files = sorted(each for each in (place.iterdir() if place.is_dir() else [place]) if each.is_file())
    return {each.name: _file_fingerprint(each) for each in files}


def _file_fingerprint(file: Path) -> str:
    size = file.stat().st_size
    return f"{size} bytes" if size > _LARGE else hashlib.sha256(file.read_bytes()).hexdigest()
