"""Checkpoints by torch.distributed.checkpoint: written beside the training, and whole or not there.

A checkpoint is a folder, ``step-00000100``. It is written under a name that ends in ``.partial``, and gets its own when
every process has written its part: what has the name is whole. Any number of processes can load it.
"""

from __future__ import annotations

import json
import os
import shutil
from concurrent.futures import Future
from datetime import timedelta
from pathlib import Path
from typing import Any

from processes import Team
from torch import distributed as dist
from torch import nn
from torch.distributed import checkpoint as dcp
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.optim import Optimizer

PARTIAL = ".partial"
NOTES = "run.json"


class Checkpoints:
    """The checkpoints of a run.

    Args:
        folder: where they are.
        keep: how many of them are kept, the last ones.
        team: the processes.
    """

    def __init__(self, folder: Path, keep: int, team: Team) -> None:
        if keep < 1:
            raise ValueError(f"--keep must be at least 1, got {keep}")
        self.folder, self._keep = folder, keep
        self._first = team.rank == 0
        # A group of its own: what is written beside the training must not take turns with its messages.
        self._group = dist.new_group(backend="gloo", timeout=timedelta(seconds=team.timeout))
        self._going: tuple[Future, Path, dict[str, Any]] | None = None
        if self._first:
            folder.mkdir(parents=True, exist_ok=True)
            for left in folder.glob(f"*{PARTIAL}"):  # of a run that was interrupted
                shutil.rmtree(left)

    def whole(self) -> list[Path]:
        """The checkpoints that are there, the last one last."""
        return sorted(path for path in self.folder.glob("step-*") if not path.name.endswith(PARTIAL))

    def save(self, step: int, model: nn.Module, optimizer: Optimizer, notes: dict[str, Any]) -> None:
        """Starts to write a checkpoint, when the one before is written; training may go on at once.

        Args:
            step: its number.
            model, optimizer: what it is of.
            notes: plain values, to be read before weights are loaded.
        """
        self.finish()
        path = self.folder / f"step-{step:08d}"
        state = dict(zip(("model", "optimizer"), get_state_dict(model, optimizer)))
        partial = path.with_name(path.name + PARTIAL)
        self._going = dcp.async_save(state, checkpoint_id=partial, process_group=self._group), path, notes

    def look(self) -> None:
        """Gives the checkpoint that is being written its name, if it is whole by now.

        Raises:
            RuntimeError: it could not be written.
        """
        if self._going is not None and self._going[0].done():
            self.finish()

    def finish(self) -> None:
        """Waits until the checkpoint that is being written, if any, is whole."""
        if self._going is None:
            return
        (future, path, notes), self._going = self._going, None
        partial = path.with_name(path.name + PARTIAL)
        try:
            future.result()
            if not self._first:
                return
            with (partial / NOTES).open("w") as file:
                json.dump(notes, file, indent=1)
                file.flush()
                os.fsync(file.fileno())
            if path.exists():  # of a run that is done again
                shutil.rmtree(path)
            partial.rename(path)
        except Exception as e:
            raise RuntimeError(f"the checkpoint {path} could not be written: {e}") from e
        for old in self.whole()[: -self._keep]:
            shutil.rmtree(old)

    def latest(self, identity: dict[str, Any]) -> tuple[Path, dict[str, Any]] | None:
        """The last whole checkpoint and its notes, the same on every process; None if there is none.

        Raises:
            ValueError: it is of a run with other settings, which are named.
        """
        found = [self.whole()[-1] if self._first and self.whole() else None]
        dist.broadcast_object_list(found, src=0)
        if (path := found[0]) is None:
            return None
        try:
            notes = json.loads((path / NOTES).read_text())
        except (OSError, ValueError) as e:
            raise ValueError(
                f"{path / NOTES} cannot be read ({e}): --out must be a folder that all processes see"
            ) from e
        mine = json.loads(json.dumps(identity))
        then = notes["identity"]
        if differing := [f"{k} {then.get(k)} (now {v})" for k, v in mine.items() if then.get(k) != v]:
            raise ValueError(
                f"{path} is of a run with other settings: {', '.join(differing)}. Choose another --out, or --restart"
            )
        return path, notes

    def load(self, path: Path, model: nn.Module, optimizer: Optimizer) -> None:
        """Puts a checkpoint into the model and the optimizer."""
        weights, moments = get_state_dict(model, optimizer)
        dcp.load({"model": weights, "optimizer": moments}, checkpoint_id=path, process_group=self._group)
        set_state_dict(model, optimizer, model_state_dict=weights, optim_state_dict=moments)
