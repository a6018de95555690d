"""Whole weights in the place of parts of them: to initialise, to look at, to save."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist

from hyena.distributed.splits import Split, place, splits_of
from hyena.models.sharding import whole_parameters


class ResetsWhole:
    """Put before the class of a module whose weights are split: they are initialised as whole ones."""

    def reset_parameters(self) -> None:
        """As on one process, with the first process's random numbers. Every process holds whole weights meanwhile."""
        parent: Any = super()
        module: Any = self
        with whole_parameters(module, write=True), _rewritten(module):
            parent.reset_parameters()
        tie = getattr(module, "tie_embeddings", None)
        if tie is not None:  # of whole weights until now
            tie()


def full_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """Whole weights of a model that is spread in any way, by the names and with the shapes of the plain model.

    Every process has to call it, and gets them all.
    """
    found: dict[str, Any] = {}
    splits = splits_of(model)
    for name, t in model.state_dict().items():
        whole = t.full_tensor() if hasattr(t, "full_tensor") else t
        found[name] = splits[name].gather(whole) if name in splits else whole.clone()
    return found


@contextmanager
def _rewritten(module: nn.Module) -> Iterator[None]:
    """Puts whole weights, without values, in the place of parts; afterwards each process has its part of the first's.

    Weights that are not split become the first process's, too.
    """
    splits = splits_of(module)
    places: list[tuple[dict[str, Any], str, Any, Split | None]] = []
    wholes: dict[int, Tensor] = {}
    for name, t in [*_weights(module)]:
        part, leaf = place(module, name)
        held: dict[str, Any] = part._parameters if leaf in part._parameters else part._buffers
        split = splits.get(name)
        if split is not None and t.size(split.axis) == split.size:
            split = None  # whole already, by a call around this one
        places.append((held, leaf, t, split))
        if split is not None:
            if id(t) not in wholes:
                empty = torch.empty(split.whole_shape(t), dtype=t.dtype, device=t.device)
                is_parameter = isinstance(t, nn.Parameter)
                wholes[id(t)] = nn.Parameter(empty, requires_grad=t.requires_grad) if is_parameter else empty
            held[leaf] = wholes[id(t)]
    try:
        yield
    finally:
        for held, leaf, t, _ in places:
            held[leaf] = t
    processes = next((split.processes for *_, split in places if split is not None), None)
    if processes is None:
        return
    done: set[int] = set()
    with torch.no_grad():
        for _, _, t, split in places:
            if id(t) in done or t.is_meta:
                continue
            done.add(id(t))
            source = wholes[id(t)].detach() if split is not None else t.detach()
            dist.broadcast(source, group_src=0, group=processes.group)
            if split is not None:
                t.copy_(split.take(source))


def _weights(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from module.named_parameters(remove_duplicate=False)
    yield from module.named_buffers(remove_duplicate=False)
