"""What a model's layers share in one call: whether the processes agree, and how its positions are spread."""

from __future__ import annotations

import zlib
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist

from hyena.distributed.agreement import Finite, check_same
from hyena.distributed.collectives import Processes

_WORDS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class Calls:
    """The calls of one model under tensor parallel; copies of the model share it.

    Args:
        processes: of the mesh axis.
        check: compare the processes' inputs at each call, and look for values that are not finite.

    Attributes:
        length: the row's positions where each process holds an equal part of them between layers, else None.
    """

    def __init__(self, processes: Processes, check: bool) -> None:
        self.processes, self.check = processes, check
        self.length: int | None = None
        self._finite = Finite()

    def __deepcopy__(self, memo: dict) -> Calls:
        return self

    def begin(self, args: tuple[Any, ...], inputs: dict[str, Any], training: bool) -> None:
        """A call of the model begins.

        Raises:
            ValueError: on every process, if one of them comes with another input.
        """
        self._finite = Finite()
        if not self.check or torch.compiler.is_compiling():
            return
        given = [*args, *inputs.values()]
        tensors = [t for t in given if isinstance(t, Tensor)]
        if not tensors:  # which the model has its own error for
            return
        x = tensors[0]
        positions = next((t.position for t in given if hasattr(t, "position")), -1)
        numbers = {
            "batch size": x.size(0),
            "positions": x.size(1) if x.dim() > 1 else -1,
            "dtype (bytes)": x.dtype.itemsize,
            "number of tensors": len(tensors),
            "position of the state": positions,
            "training": 2 * int(training) + int(torch.is_grad_enabled()),
            "input (checksum)": checksum(x),
            "mask or packing (checksum)": zlib.crc32(str([checksum(t) for t in tensors[1:]]).encode()),
        }
        check_same(numbers, self.processes.group, x.device)

    def met(self, name: str, y: Tensor) -> None:
        """A layer has computed its part ``y``."""
        if self.check and not torch.compiler.is_compiling():
            self._finite.met(name, y)

    def end(self) -> None:
        """A call of the model ends: every process raises ValueError if one of them met values that are not finite."""
        if self.check and not torch.compiler.is_compiling():
            self._finite.end(self.processes.group, "the part of a layer's output")


def checksum(t: Tensor) -> int:
    """A number that differs, in all likelihood, where the values of ``t`` do; ``t`` stays on its device."""
    if t.numel() == 0:
        return 0
    words = _WORDS[min(t.element_size(), 8)]
    bits = t.detach().contiguous().flatten().view(words).to(torch.int64)
    at = torch.arange(1, bits.numel() + 1, device=bits.device) % 65521
    return int((bits * at).sum()) % (1 << 62)


def same_values(tensors: dict[str, Tensor], processes: Processes) -> None:
    """Raises ValueError on every process if a tensor's values differ between them, with the first that does."""
    known = {name: t for name, t in tensors.items() if not t.is_meta}
    if not known:
        return
    mine = torch.tensor([checksum(t) for t in known.values()], device=processes.mesh.device_type)
    every = [torch.empty_like(mine) for _ in range(processes.size)]
    dist.all_gather(every, mine, group=processes.group)
    table = torch.stack(every).cpu()
    for name, column in zip(known, table.T.tolist(), strict=True):
        if len(set(column)) > 1:
            odd = [rank for rank, value in enumerate(column) if value != column[0]]
            raise ValueError(
                f"the values of {name} on rank{'s' * (len(odd) > 1)} {', '.join(map(str, odd))} are not those on rank "
                "0: seed every process alike, or load the same weights"
            )
