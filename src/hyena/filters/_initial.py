"""Writing initial values into weights, whole or sharded."""

from __future__ import annotations

import torch
from torch import Tensor


def empty(t: Tensor) -> Tensor:
    """A plain tensor to fill, of the whole shape of ``t`` if that is a shard (a ``DTensor``, as FSDP2 makes them)."""
    return torch.empty(t.shape, dtype=t.dtype, device=t.device)


def whole(t: Tensor) -> Tensor:
    """``t``, gathered from all processes if it is sharded."""
    return t.full_tensor() if hasattr(t, "full_tensor") else t


def to_unit_norm(energy: Tensor, num_filters: int) -> Tensor:
    """Factors ``(R, G)`` that give every filter norm 1, both directions together, from energies ``(R, G)``."""
    both = energy.view(-1, num_filters, energy.size(1)).sum(0).clamp_min(1e-24)
    return both.rsqrt().repeat(energy.size(0) // num_filters, 1)


@torch.no_grad()
def fill(t: Tensor, value: Tensor) -> None:
    """Copies ``value``, a plain tensor of the whole shape, into ``t``.

    Of a sharded weight every process keeps its part of the first process's values.
    """
    if t.is_meta:
        return
    if hasattr(t, "full_tensor"):
        from torch.distributed.tensor import Replicate, distribute_tensor

        mesh = t.device_mesh  # type: ignore[attr-defined]
        value = distribute_tensor(value, mesh, [Replicate()] * mesh.ndim)
        value = value.redistribute(placements=t.placements)  # type: ignore[attr-defined]
    t.copy_(value)
