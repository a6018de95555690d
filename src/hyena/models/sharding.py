"""Sharded parameters, gathered where no forward's hooks gather them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn


@contextmanager
def whole_parameters(module: nn.Module, *, write: bool = False) -> Iterator[None]:
    """Puts whole parameters in place of sharded ones (``DTensor``, as FSDP2's) inside the block.

    FSDP2 gathers parameters in hooks of ``forward``; a decoding state is made, and weights are initialised, outside.
    Every process of the mesh has to enter the block.

    Args:
        module: whose parameters, those of its submodules included.
        write: afterwards each process takes its shard of the first process's values.
    """
    places: list[tuple[nn.Module, str, Any]] = []
    whole: dict[int, nn.Parameter] = {}
    try:
        for part in module.modules():
            for name, p in part._parameters.items():
                # Not isinstance: importing DTensor takes a fifth of a second, and most models have none.
                if p is None or not hasattr(p, "full_tensor"):
                    continue
                if id(p) not in whole:
                    whole[id(p)] = nn.Parameter(p.full_tensor().detach(), requires_grad=False)
                places.append((part, name, p))
                part._parameters[name] = whole[id(p)]
        yield
        if write:
            for p in {id(p): p for _, _, p in places}.values():
                _scatter(whole[id(p)], p)
    finally:
        for part, name, p in places:
            part._parameters[name] = p


@torch.no_grad()
def _scatter(whole: torch.Tensor, sharded: Any) -> None:
    from torch.distributed.tensor import distribute_tensor

    sharded.copy_(distribute_tensor(whole.detach(), sharded.device_mesh, sharded.placements))
