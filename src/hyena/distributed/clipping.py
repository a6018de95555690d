"""Gradients clipped by their norm over all processes, whatever each of them holds of which parameter."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist

from hyena.distributed.splits import splits_of


@torch.no_grad()
def clip_grad_norm_(model: nn.Module, max_norm: float, *, norm_type: float = 2.0) -> Tensor:
    """Scales gradients so that their norm is at most ``max_norm``: torch's function of the name, of a spread model.

    Every entry of every parameter counts once: parts of tensor parallel and shards of ``fully_shard`` are added up over
    their processes, what several hold alike is not. So the factor is the same everywhere, and the one of one process.
    Under context parallel call :func:`hyena.distributed.sum_gradients` first.

    Args:
        model: all processes have to call this.
        max_norm: above it gradients are scaled.
        norm_type: of the norm over all entries; ``inf`` for the largest.

    Returns:
        The norm before it was clipped, a scalar.

    Raises:
        ValueError: numbers that are not positive.
    """
    if not max_norm > 0 or not norm_type > 0:
        raise ValueError(f"max_norm and norm_type must be positive, got {max_norm} and {norm_type}")
    splits = splits_of(model)
    # By the processes that have to be added up: those that hold other entries of the same parameter.
    sums: dict[tuple[str, ...], Tensor] = {}
    groups: dict[str, dist.ProcessGroup] = {}
    local: list[Tensor] = []
    for name, p in model.named_parameters():
        if not p.requires_grad:
            continue
        over = _sharded_over(p)
        if name in splits:
            over.append(splits[name].processes.group)
        groups |= {group.group_name: group for group in over}
        key = tuple(sorted({group.group_name for group in over}))
        if key not in sums:
            dtype = torch.float64 if p.dtype == torch.float64 else torch.float32
            sums[key] = torch.zeros((), dtype=dtype, device=p.device)
        if p.grad is None:
            continue
        grad: Any = p.grad
        grad = grad.to_local() if hasattr(grad, "to_local") else grad
        local.append(grad)
        norm = torch.linalg.vector_norm(grad, norm_type, dtype=sums[key].dtype) if grad.numel() else grad.new_zeros(())
        sums[key] = torch.maximum(sums[key], norm) if math.isinf(norm_type) else sums[key] + norm**norm_type
    op = dist.ReduceOp.MAX if math.isinf(norm_type) else dist.ReduceOp.SUM
    for group_name in sorted(groups):
        keys = [key for key in sums if group_name in key]
        both = torch.stack([sums[key].double() for key in keys])
        dist.all_reduce(both, op=op, group=groups[group_name])
        sums |= dict(zip(keys, both, strict=True))
    each = torch.stack([t.double() for t in sums.values()])
    total = each.max() if math.isinf(norm_type) else each.sum() ** (1 / norm_type)
    factor = (max_norm / (total + 1e-6)).clamp(max=1.0)
    for grad in local:
        grad.mul_(factor.to(grad.dtype))
    return total


def _sharded_over(p: Any) -> list[dist.ProcessGroup]:
    """Of a DTensor the groups of the mesh axes that shard it."""
    if not hasattr(p, "placements"):
        return []
    return [p.device_mesh.get_group(axis) for axis, placed in enumerate(p.placements) if placed.is_shard()]
