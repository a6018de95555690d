"""Whether all processes do the same: numbers of a few bytes compared before tensors travel.

A process that comes with another model or another input would leave the others waiting, or give them tensors of
another size. Every process raises the same error instead, which names the ranks.
"""

from __future__ import annotations

import zlib
from collections import defaultdict
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist

from hyena.distributed.shards import gather_numbers


def check_same_model(model: nn.Module, group: dist.ProcessGroup, device: torch.device) -> None:
    """Raises ValueError on every process if parameters, buffers or settings differ between them, with the first."""
    lines = [f"{name}: {tuple(t.shape)} {t.dtype}" for name, t in model.state_dict().items() if isinstance(t, Tensor)]
    lines += [
        f"{name or 'the model'}: {type(part).__name__}({part.extra_repr()})" for name, part in model.named_modules()
    ]
    mine = zlib.crc32("\n".join(lines).encode())
    if len(set(gather_numbers([mine], group, device).flatten().tolist())) == 1:
        return
    every: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(every, lines, group=group)
    longest = max(len(each) for each in every)
    for at in range(longest):
        _check_column("the models differ", [each[at] if at < len(each) else "nothing more" for each in every])


def check_same(
    numbers: dict[str, int], group: dist.ProcessGroup, device: torch.device, each: str | None = None
) -> list[int]:
    """Raises ValueError on every process if one of the numbers differs; returns every process's number ``each``."""
    table = gather_numbers(list(numbers.values()), group, device)
    for column, name in enumerate(numbers):
        if name != each:
            _check_column(f"{name} differs", table[:, column].tolist())
    return [] if each is None else table[:, list(numbers).index(each)].tolist()


class Finite:
    """Whether what layers computed in one call is finite, by their names."""

    def __init__(self) -> None:
        self._found: dict[str, Tensor] = {}

    def met(self, name: str, y: Tensor) -> None:
        """A layer has computed ``y``; the first time in a call counts."""
        if name not in self._found:
            self._found[name] = y.detach().isfinite().all()

    def end(self, group: dist.ProcessGroup, what: str) -> None:
        """The call ends: every process raises ValueError if ``what`` was not finite on one of them."""
        if not self._found:
            return
        finite = torch.stack(list(self._found.values())).tolist()
        first = finite.index(False) if False in finite else -1
        device = next(iter(self._found.values())).device
        names, self._found = list(self._found), {}
        found = {rank: at for rank, (at,) in enumerate(gather_numbers([first], group, device).tolist()) if at >= 0}
        if found:
            said = ", ".join(f"rank {rank} (in {names[at]})" for rank, at in found.items())
            raise ValueError(f"not finite: {what} on {said}")


def _check_column(what: str, values: list[Any]) -> None:
    ranks: dict[Any, list[int]] = defaultdict(list)
    for rank, value in enumerate(values):
        ranks[value].append(rank)
    if len(ranks) > 1:
        said = "; ".join(f"rank{'s' * (len(r) > 1)} {', '.join(map(str, r))}: {value}" for value, r in ranks.items())
        raise ValueError(f"{what} between the processes ({said})")
