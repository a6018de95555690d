"""Collectives of tensor parallelism that know their gradients.

Each is named by what it does forward. What one does backward is another, called as such, so that gradients have
gradients of every order.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist
from torch.distributed.device_mesh import DeviceMesh

from hyena.distributed.shards import together

# By their names from torch 2.13 on, and before.
_all_gather: Any = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
_reduce_scatter: Any = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor


class Processes:
    """The processes of one mesh axis; copies of a model share it.

    Args:
        mesh: of one axis.
    """

    def __init__(self, mesh: DeviceMesh) -> None:
        self.mesh, self.group = mesh, mesh.get_group()
        self.rank, self.size = mesh.get_local_rank(), mesh.size()

    def __deepcopy__(self, memo: dict) -> Processes:
        return self

    def sum(self, x: Tensor) -> Tensor:
        """The sum of every process's ``x``."""
        y = x.clone(memory_format=torch.contiguous_format)
        with self._together("an all-reduce"):
            dist.all_reduce(y, group=self.group)
        return y

    def gather(self, x: Tensor, dim: int) -> Tensor:
        """Every process's ``x``, all of one shape, one after the other along ``dim``."""
        x = x.movedim(dim, 0).contiguous()
        y = x.new_empty(self.size * x.size(0), *x.shape[1:])
        with self._together("an all-gather"):
            _all_gather(y, x, group=self.group)
        return y.movedim(0, dim).contiguous()

    def sum_of_mine(self, x: Tensor, dim: int) -> Tensor:
        """This process's equal part along ``dim`` of the sum of every process's ``x``."""
        x = x.movedim(dim, 0).contiguous()
        y = x.new_empty(x.size(0) // self.size, *x.shape[1:])
        with self._together("a reduce-scatter"):
            _reduce_scatter(y, x, group=self.group)
        return y.movedim(0, dim).contiguous()

    def mine(self, x: Tensor, dim: int) -> Tensor:
        """This process's equal part of ``x`` along ``dim``."""
        each = x.size(dim) // self.size
        return x.narrow(dim, self.rank * each, each).contiguous()

    def _together(self, what: str) -> AbstractContextManager[object]:
        return nullcontext() if torch.compiler.is_compiling() else together(f"{what} of a layer", self.group)


class _Same(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, processes: Processes, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.processes = processes
        return tuple(t.view_as(t) for t in tensors)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        if len(grads) == 1:
            return None, _Sum.apply(grads[0], ctx.processes)
        flat = _Sum.apply(torch.cat([g.reshape(-1) for g in grads]), ctx.processes)
        parts = flat.split([g.numel() for g in grads])
        return None, *(part.view(g.shape) for part, g in zip(parts, grads, strict=True))


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, processes: Processes) -> Tensor:
        ctx.processes = processes
        return processes.sum(x)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Any, ...]:
        return _Same.apply(ctx.processes, g)[0], None


class _Mine(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, processes: Processes, dim: int) -> Tensor:
        ctx.processes, ctx.dim = processes, dim
        return processes.mine(x, dim)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Any, ...]:
        return _Gather.apply(g, ctx.processes, ctx.dim, True), None, None


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, processes: Processes, dim: int, same: bool) -> Tensor:
        ctx.processes, ctx.dim, ctx.same = processes, dim, same
        return processes.gather(x, dim)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Any, ...]:
        take = _Mine if ctx.same else _SumOfMine
        return take.apply(g, ctx.processes, ctx.dim), None, None, None


class _SumOfMine(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, processes: Processes, dim: int) -> Tensor:
        ctx.processes, ctx.dim = processes, dim
        return processes.sum_of_mine(x, dim)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Any, ...]:
        return _Gather.apply(g, ctx.processes, ctx.dim, False), None, None


def used_in_part(processes: Processes, *tensors: Tensor) -> tuple[Tensor, ...]:
    """The tensors, the same on every process, each of which makes another use of them: gradients are summed."""
    return _Same.apply(processes, *tensors)


def summed(x: Tensor, processes: Processes) -> Tensor:
    """The sum of every process's ``x``, that all go on with alike: a gradient is the same everywhere."""
    return _Sum.apply(x, processes)


def my_part(x: Tensor, processes: Processes, dim: int) -> Tensor:
    """This process's equal part along ``dim`` of an ``x`` that is the same everywhere; gradients are gathered."""
    return _Mine.apply(x, processes, dim)


def gathered(x: Tensor, processes: Processes, dim: int, *, same: bool) -> Tensor:
    """Every process's ``x`` along ``dim``.

    Args:
        x: of the same shape everywhere.
        processes: of the mesh axis.
        dim: of the result.
        same: whether all processes go on with it alike, so that a gradient needs no summing.
    """
    return _Gather.apply(x, processes, dim, same)


def sum_of_my_part(x: Tensor, processes: Processes, dim: int) -> Tensor:
    """This process's equal part along ``dim`` of the sum of every process's ``x``."""
    return _SumOfMine.apply(x, processes, dim)
