"""Sharded parameters, gathered where no forward's hooks gather them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def whole_parameters(module: nn.Module) -> Iterator[None]:
    """Puts whole parameters in place of sharded ones (``DTensor``, as FSDP2's) inside the block.

    FSDP2 gathers parameters in hooks of ``forward``; a decoding state is made before the first. Every process of the
    mesh has to enter the block.
    """
    sharded = []
    try:
        for part in module.modules():
            for name, p in part._parameters.items():
                # Not isinstance: importing DTensor takes a fifth of a second, and most models have none.
                if p is not None and hasattr(p, "full_tensor"):
                    sharded.append((part, name, p))
                    part._parameters[name] = nn.Parameter(p.full_tensor(), requires_grad=False)
        yield
    finally:
        for part, name, p in sharded:
            part._parameters[name] = p
