"""Which entries of a weight belong to which process, and whole weights out of parts.

A weight is split along one axis. A process may hold several ranges of it: its channels of each part of a projection.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hyena.distributed.collectives import Processes


@dataclasses.dataclass(frozen=True)
class Split:
    """How one weight is shared out to the processes of a mesh axis.

    Args:
        axis: which is split.
        size: of the whole weight along it.
        ranges: for each process the entries that it holds, in their order, as many on each.
        processes: of the mesh axis.
    """

    axis: int
    size: int
    ranges: tuple[tuple[range, ...], ...]
    processes: Processes

    def take(self, whole: Tensor) -> Tensor:
        """This process's part of a whole weight, in memory of its own."""
        mine = self.ranges[self.processes.rank]
        return torch.cat([whole.narrow(self.axis, r.start, len(r)) for r in mine], self.axis)

    def whole_shape(self, part: Tensor) -> list[int]:
        """The shape of the whole weight."""
        return [*part.shape[: self.axis], self.size, *part.shape[self.axis + 1 :]]

    def gather(self, part: Tensor) -> Tensor:
        """The whole weight, on every process."""
        parts = self.processes.gather(part, self.axis).chunk(self.processes.size, self.axis)
        whole = part.new_empty(self.whole_shape(part))
        for ranges, each in zip(self.ranges, parts, strict=True):
            for r, entries in zip(ranges, each.split([len(r) for r in ranges], self.axis), strict=True):
                whole.narrow(self.axis, r.start, len(r)).copy_(entries)
        return whole

    def rectangles(self, start: int, stop: int) -> Iterator[tuple[int, int, int]]:
        """Entries ``start`` to ``stop`` of this process's part: runs of ``(from, in the whole weight from, count)``."""
        at = 0
        for r in self.ranges[self.processes.rank]:
            a, b = max(start, at), min(stop, at + len(r))
            if a < b:
                yield a, r.start + a - at, b - a
            at += len(r)


def runs(entries: Sequence[int]) -> tuple[range, ...]:
    """Ascending runs of step 1 that make up ``entries``."""
    found: list[range] = []
    for i in entries:
        if found and found[-1].stop == i:
            found[-1] = range(found[-1].start, i + 1)
        else:
            found.append(range(i, i + 1))
    return tuple(found)


def equal(size: int, processes: Processes, axis: int, parts: int = 1) -> Split:
    """The split of an axis that holds ``parts`` rows of which every process has an equal share."""
    row = size // parts
    each = row // processes.size
    ranges = tuple(
        tuple(range(p * row + r * each, p * row + (r + 1) * each) for p in range(parts)) for r in range(processes.size)
    )
    return Split(axis, size, ranges, processes)


class Parts:
    """Parameters that have been split already, so that one that has several places stays one."""

    def __init__(self) -> None:
        self._done: dict[int, tuple[nn.Parameter, nn.Parameter]] = {}

    def put(self, owner: nn.Module, path: str, split: Split) -> None:
        """Leaves this process's part in the place of a parameter or buffer, and writes down its split.

        Args:
            owner: keeps the split, under the weight's path in it.
            path: the weight's.
            split: how it is shared out.
        """
        part, leaf = place(owner, path)
        owner.__dict__.setdefault("_splits", {})[path] = split
        if leaf in part._buffers:
            part._buffers[leaf] = split.take(_plain(owner, path, part._buffers[leaf]))
            return
        whole = part._parameters[leaf]
        if id(whole) not in self._done:
            mine = nn.Parameter(split.take(_plain(owner, path, whole)), requires_grad=whole.requires_grad)  # type: ignore[union-attr]
            self._done[id(whole)] = whole, mine  # type: ignore[assignment]
        part._parameters[leaf] = self._done[id(whole)][1]


def _plain(owner: nn.Module, path: str, t: Any) -> Tensor:
    if hasattr(t, "full_tensor"):
        raise ValueError(
            f"{path} of a {type(owner).__name__} is a DTensor with {t.placements}: call tensor_parallel before "
            "fully_shard"
        )
    return t.detach()


def place(owner: nn.Module, path: str) -> tuple[nn.Module, str]:
    """The module that holds a weight, and its name there."""
    inner, _, leaf = path.rpartition(".")
    return owner.get_submodule(inner), leaf


def splits_of(model: nn.Module) -> dict[str, Split]:
    """The splits of a model's weights, by their names in its state dict."""
    found: dict[str, Split] = {}
    for name, part in model.named_modules(remove_duplicate=False):
        for path, split in part.__dict__.get("_splits", {}).items():
            found[f"{name}.{path}" if name else path] = split
    return found
