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


def check_same(numbers: dict[str, int], group: dist.ProcessGroup, device: torch.device, each: str) -> list[int]:
    """Raises ValueError on every process if one of the numbers differs; returns every process's number ``each``."""
    table = gather_numbers(list(numbers.values()), group, device)
    for column, name in enumerate(numbers):
        if name != each:
            _check_column(f"{name} differs", table[:, column].tolist())
    return table[:, list(numbers).index(each)].tolist()


def _check_column(what: str, values: list[Any]) -> None:
    ranks: dict[Any, list[int]] = defaultdict(list)
    for rank, value in enumerate(values):
        ranks[value].append(rank)
    if len(ranks) > 1:
        said = "; ".join(f"rank{'s' * (len(r) > 1)} {', '.join(map(str, r))}: {value}" for value, r in ranks.items())
        raise ValueError(f"{what} between the processes ({said})")
