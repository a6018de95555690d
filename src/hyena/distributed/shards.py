"""Which positions and channels belong to which process, and whole rows out of shards.

Dimensions: R processes, B batch, L length.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import accumulate, pairwise

import torch
from torch import Tensor
from torch import distributed as dist
from torch.distributed.device_mesh import DeviceMesh


def evenly(number: int, parts: int) -> list[range]:
    """``range(number)`` in parts whose sizes differ by one at most, as ``Tensor.tensor_split`` has them."""
    sizes = [number // parts + (part < number % parts) for part in range(parts)]
    return [range(a, b) for a, b in pairwise([0, *accumulate(sizes)])]


def shard(x: Tensor, mesh: DeviceMesh, dim: int = 1) -> Tensor:
    """This process's positions of whole rows, sizes differing by one at most.

    Args:
        x: whole rows, ``(B, L, …)``, the same on every process of the mesh.
        mesh: of one axis, ``mesh["cp"]``.
        dim: the positions' dimension.

    Raises:
        ValueError: a mesh of several axes, or fewer positions than processes.
    """
    check_mesh(mesh)
    if x.size(dim) < mesh.size():
        raise ValueError(f"{x.size(dim)} positions cannot be shared out to {mesh.size()} processes: one each at least")
    mine = evenly(x.size(dim), mesh.size())[mesh.get_local_rank()]
    return x.narrow(dim, mine.start, len(mine))


@torch.no_grad()
def gather(x: Tensor, mesh: DeviceMesh, dim: int = 1) -> Tensor:
    """Whole rows out of every process's positions, on every process; without gradients, for looking at outputs.

    Args:
        x: this process's positions, ``(B, n, …)``; n may differ.
        mesh: of one axis, ``mesh["cp"]``.
        dim: the positions' dimension.
    """
    check_mesh(mesh)
    sizes = [int(t) for t in gather_numbers([x.size(dim)], mesh.get_group(), x.device)[:, 0]]
    return gather_uneven(x, sizes, mesh.get_group(), dim)


def gather_uneven(x: Tensor, sizes: list[int], group: dist.ProcessGroup, dim: int = 1) -> Tensor:
    """Shards of known sizes, one after the other."""
    wide = torch.nn.functional.pad(x.movedim(dim, -1), (0, max(sizes) - x.size(dim))).contiguous()
    found = [torch.empty_like(wide) for _ in sizes]
    with together("gathering shards", group):
        dist.all_gather(found, wide, group=group)
    return torch.cat([t[..., :size] for t, size in zip(found, sizes, strict=True)], dim=-1).movedim(-1, dim)


def gather_numbers(numbers: list[int], group: dist.ProcessGroup, device: torch.device) -> Tensor:
    """``(R, len(numbers))`` int64 on the CPU: every process's numbers."""
    mine = torch.tensor(numbers, device=device)
    found = [torch.empty_like(mine) for _ in range(dist.get_world_size(group))]
    with together("comparing the processes", group):
        dist.all_gather(found, mine, group=group)
    return torch.stack(found).cpu()


@contextmanager
def together(what: str, group: dist.ProcessGroup) -> Iterator[None]:
    """Raises RuntimeError that says where this process was, if another does not take part in what is inside."""
    try:
        yield
    except RuntimeError as e:
        rank, size = dist.get_rank(group), dist.get_world_size(group)
        raise RuntimeError(
            f"{what} failed on rank {rank} of {size}: another process has stopped, or did not come to it within the "
            f"group's timeout ({e})"
        ) from e


def check_mesh(mesh: DeviceMesh) -> None:
    """Raises ValueError unless the mesh has one axis."""
    if not isinstance(mesh, DeviceMesh):
        raise TypeError(f"expected a DeviceMesh of one axis, got a {type(mesh).__name__}")
    if mesh.ndim != 1:
        names = mesh.mesh_dim_names or ("without names",)
        raise ValueError(f"expected a mesh of one axis, got {mesh.ndim} ({', '.join(names)}): pass one, mesh[name]")
