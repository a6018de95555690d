"""Checkpoints by ``torch.distributed.checkpoint`` that any number of processes load, spread in any way."""

from __future__ import annotations

import io
import shutil
from concurrent.futures import Future
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.distributed import checkpoint as dcp
from torch.distributed.checkpoint.state_dict import (
    get_model_state_dict,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.optim import Optimizer

from hyena.distributed.pieces import Pieces
from hyena.distributed.splits import Split, splits_of

# The file that DCP writes last, under another name first: a checkpoint is complete if it is there.
_METADATA = ".metadata"


def checkpoint_state(model: nn.Module, optimizer: Optimizer | None = None) -> dict[str, Any]:
    """Model and optimizer in the plain model's names and shapes, for ``torch.distributed.checkpoint`` to save or load.

    Values share memory with the model's and the optimizer's, so that ``dcp.load`` writes into them. (What it reads that
    is no tensor, as learning rates, is in the dict afterwards: :class:`Checkpoints` puts it back.)

    Args:
        model: plain, or spread by :func:`hyena.distributed.tensor_parallel`, ``fully_shard``,
            ``DistributedDataParallel``, :func:`hyena.distributed.context_parallel`, or several of them.
        optimizer: of its parameters.

    Returns:
        ``{"model": …, "optimizer": …}``.

    Raises:
        ValueError: an optimizer whose state of a split weight has another shape than the weight.
    """
    model = unwrapped(model)
    splits = {name.replace("_orig_mod.", ""): split for name, split in splits_of(model).items()}
    state: dict[str, Any] = {"model": _in_pieces(get_model_state_dict(model), splits)}
    if optimizer is not None:
        state["optimizer"] = _optimizer_in_pieces(get_optimizer_state_dict(model, optimizer), splits)
    return state


class Checkpoints:
    """The checkpoints of one training in a folder, one a step: saved on some processes and loaded on others.

    A checkpoint is complete or not there: it is known by a file that is written after all others and takes its name at
    once. What was interrupted is never loaded, and removed when that step is saved again.

    All processes of the default group call every method, except :meth:`steps`. Without ``torch.distributed`` it is one
    process.

    Args:
        folder: that all processes see.
        model: see :func:`checkpoint_state`.
        optimizer: saved with it if given, and then loaded with it.
        keep: so many of the latest are left in the folder; all if missing.

    Raises:
        ValueError: ``keep`` below 1.
    """

    def __init__(
        self, folder: str | Path, model: nn.Module, optimizer: Optimizer | None = None, *, keep: int | None = None
    ) -> None:
        if keep is not None and (isinstance(keep, bool) or not isinstance(keep, int) or keep < 1):
            raise ValueError(f"keep must be an integer of at least 1, or None for all, got {keep!r}")
        self.folder, self.model, self.optimizer, self.keep = Path(folder), model, optimizer, keep
        self._pending: Future | None = None
        # Of its own, because a checkpoint may be written beside the training's collectives.
        self._group = dist.new_group(backend="gloo") if dist.is_initialized() else None

    def steps(self) -> list[int]:
        """Of which steps there are complete checkpoints, in their order."""
        found = (path.parent.name.removeprefix("step-") for path in self.folder.glob(f"step-*/{_METADATA}"))
        return sorted(int(name) for name in found if name.isdigit())

    def path(self, step: int) -> Path:
        """The folder of one checkpoint, for ``torch.distributed.checkpoint``'s own tools."""
        return self.folder / f"step-{step:09d}"

    def save(self, step: int, extra: dict[str, Any] | None = None, *, asynchronous: bool = False) -> None:
        """Saves model and optimizer.

        Args:
            step: of the training.
            extra: tensors and plain values to save with them (of the data's sampler, a schedule, random numbers), the
                same on every process; the first one's are saved.
            asynchronous: return as soon as there is a copy in the CPU's memory, and write that in a thread. The next
                :meth:`save`, :meth:`load` or :meth:`wait` waits for it.

        Raises:
            ValueError: a step that is saved already, or no number.
        """
        if isinstance(step, bool) or not isinstance(step, int) or step < 0:
            raise ValueError(f"step must be an integer of at least 0, got {step!r}")
        self.wait()
        path = self.path(step)
        if (path / _METADATA).exists():
            raise ValueError(f"there is a checkpoint of step {step} in {self.folder} already")
        packed = io.BytesIO()
        torch.save({} if extra is None else extra, packed)
        state = {**checkpoint_state(self.model, self.optimizer), "extra": packed.getvalue()}
        self._barrier()
        if self._is_first() and path.exists():
            shutil.rmtree(path)
        self._barrier()
        if asynchronous:
            self._pending = cast(Future, dcp.async_save(state, checkpoint_id=path, process_group=self._group))
        else:
            dcp.save(state, checkpoint_id=path, process_group=self._group)
            self._remove_old()

    def wait(self) -> None:
        """Waits for a checkpoint that is still being written.

        Raises:
            Exception: whatever went wrong with it.
        """
        if self._pending is not None:
            pending, self._pending = self._pending, None
            pending.result()
            self._remove_old()

    def load(self, step: int | None = None) -> tuple[int, dict[str, Any]] | None:
        """Loads into model and optimizer.

        Args:
            step: which; the latest that is complete if missing.

        Returns:
            The step and what was saved as ``extra``; None if there is no complete checkpoint and no ``step`` was given.

        Raises:
            ValueError: there is no complete checkpoint of this step, with those there are.
        """
        self.wait()
        there = self.steps()
        if step is None:
            # The first process decides: others may see the folder a moment later.
            found = [there[-1] if there else -1]
            if self._group is not None:
                dist.broadcast_object_list(found, src=0, group=self._group)
            if found[0] < 0:
                return None
            step = found[0]
        elif step not in there:
            raise ValueError(f"there is no complete checkpoint of step {step} in {self.folder}, only of {there}")
        state = {**checkpoint_state(self.model, self.optimizer), "extra": b""}
        dcp.load(state, checkpoint_id=self.path(step), process_group=self._group)
        if self.optimizer is not None:
            model = unwrapped(self.model)
            own = get_optimizer_state_dict(model, self.optimizer)
            set_optimizer_state_dict(model, self.optimizer, _out_of_pieces(state["optimizer"], own))
        return step, torch.load(io.BytesIO(state["extra"]), weights_only=True)

    def _remove_old(self) -> None:
        if self.keep is not None and self._is_first():
            for step in self.steps()[: -self.keep]:
                (self.path(step) / _METADATA).unlink()  # first: what is half removed is no checkpoint
                shutil.rmtree(self.path(step))

    def _is_first(self) -> bool:
        return self._group is None or dist.get_rank() == 0

    def _barrier(self) -> None:
        if self._group is not None:
            dist.barrier(self._group)


def unwrapped(model: nn.Module) -> nn.Module:
    """The model inside ``DistributedDataParallel`` and ``torch.compile``."""
    inner: Any = model
    while isinstance(inner, nn.parallel.DistributedDataParallel) or hasattr(inner, "_orig_mod"):
        inner = inner.module if isinstance(inner, nn.parallel.DistributedDataParallel) else inner._orig_mod
    return inner


def _in_pieces(state: dict[str, Any], splits: dict[str, Split]) -> dict[str, Any]:
    return {name: Pieces(t, splits[name]) if name in splits else t for name, t in state.items()}


def _optimizer_in_pieces(state: Any, splits: dict[str, Split]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, values in state["state"].items():
        split = splits.get(name)
        found[name] = {
            key: value if split is None else _piece(name, key, value, split) for key, value in values.items()
        }
    return {**state, "state": found}


def _piece(name: str, key: str, value: Any, split: Split) -> Any:
    if not isinstance(value, Tensor) or value.dim() == 0:
        return value
    part = sum(len(r) for r in split.ranges[split.processes.rank])
    if value.dim() <= split.axis or value.size(split.axis) != part:
        raise ValueError(
            f"the optimizer's {key} of {name} is {tuple(value.shape)}, not of the weight's own shape: it cannot be put "
            "together over processes"
        )
    return Pieces(value, split)


def _out_of_pieces(loaded: Any, own: Any) -> Any:
    """What was loaded, with the optimizer's own tensors in the place of pieces, which share their memory."""
    if isinstance(loaded, Pieces):
        return own
    if isinstance(loaded, dict):
        return {key: _out_of_pieces(value, own[key]) for key, value in loaded.items()}
    return loaded
