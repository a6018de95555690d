"""The state of a conversion in a folder, from which a killed one goes on bit for bit."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

FILE = "conversion.pt"
AGAIN = "pass another checkpoint folder, or remove this one to begin again"


def fingerprint(model: nn.Module) -> str:
    """A hash of names, shapes and values of a model's weights."""
    total = hashlib.sha256()
    for name, t in model.state_dict().items():
        if isinstance(t, Tensor):
            total.update(f"{name}{t.dtype}{tuple(t.shape)}".encode())
            plain = t.detach().cpu().contiguous().reshape(-1)
            total.update(plain.view(torch.uint8).numpy().tobytes())
    return total.hexdigest()


def save(folder: Path, state: dict[str, Any]) -> None:
    """Writes a state; whenever the process is killed the folder holds a whole one, the old or the new."""
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / f"{FILE}.{os.getpid()}.partial"
    try:
        with partial.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(folder / FILE)
    finally:
        partial.unlink(missing_ok=True)


def load(folder: Path, identity: dict[str, Any]) -> dict[str, Any] | None:
    """The state in a folder, None if there is none.

    Raises:
        ValueError: it is damaged, or of a conversion with other settings or another model.
    """
    path = folder / FILE
    if not path.exists():
        return None
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        found = dict(state["identity"])
    except PermissionError:
        raise
    except Exception as e:  # whatever a damaged archive leads to
        raise ValueError(f"{path} is not the state of a conversion ({type(e).__name__}); {AGAIN}") from e
    differing = [
        f"{name} {found.get(name)} (now {identity.get(name)})"
        for name in sorted({*found, *identity})
        if found.get(name) != identity.get(name)
    ]
    if differing:
        raise ValueError(f"{path} is of another conversion: {', '.join(differing)}; {AGAIN}")
    return state


def random_state() -> dict[str, Tensor | list[Tensor]]:
    """The states of torch's generators."""
    return {"cpu": torch.get_rng_state(), "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []}


def set_random_state(state: dict[str, Any]) -> None:
    """Goes on with the random numbers of :func:`random_state`."""
    torch.set_rng_state(state["cpu"])
    if state["cuda"]:
        torch.cuda.set_rng_state_all(state["cuda"])
