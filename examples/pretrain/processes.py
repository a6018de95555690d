"""Joining the other processes, and what each says when one of them fails."""

from __future__ import annotations

import os
import secrets
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
from torch import distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh


class Team:
    """This process among the others. What goes wrong on one is kept in the store that all of them share.

    Args:
        store, rank, size: as torchrun has them.
        device: of this process.
        timeout: seconds that a process waits for the others.
    """

    def __init__(self, store: dist.Store, rank: int, size: int, device: torch.device, timeout: float) -> None:
        self.rank, self.size, self.device, self.timeout = rank, size, device, timeout
        self._store = dist.PrefixStore("pretrain", store)
        self._where = "before the first step"

    def at(self, where: str) -> None:
        """Says where this process is, for the others' errors."""
        self._where = where
        self._store.set(f"at/{self.rank}", f"{time.time()} {where}")

    def mesh(self, **axes: int) -> DeviceMesh:
        """A mesh of all processes, whose groups wait as long as they do."""
        mesh = init_device_mesh(self.device.type, tuple(axes.values()), mesh_dim_names=tuple(axes))
        for group in mesh.get_all_groups():  # else torch's default timeout, half an hour
            dist.distributed_c10d._set_pg_timeout(timedelta(seconds=self.timeout), group)
        return mesh

    def explain(self, error: BaseException) -> str:
        """One line or a few: which process failed first, or where each was last seen if none said anything."""
        mine = f"rank {self.rank} of {self.size}, {self._where}"
        said = f"{mine}: {type(error).__name__}: {error}"
        try:
            waited = isinstance(error, RuntimeError) and self.size > 1  # perhaps for a process that is gone
            first = self._said("failed") if waited else self._store.compare_set("failed", "", said).decode()
            if first == said:
                return said
            if first is not None:
                return f"{mine}: stopped, because another process did ({first})"
            seen = [f"  rank {rank} was last seen {self._seen(rank)}" for rank in range(self.size)]
            hint = f"a process has stopped, or did not come within --timeout {self.timeout:g} s"
            return "\n".join([said, f"  if this is about waiting for others: {hint}", *seen])
        except (RuntimeError, ValueError):  # the store went with the process that kept it
            return said

    def _said(self, key: str) -> str | None:
        """What is under a key; the process that failed may be about to write it."""
        for _ in range(10):
            if self._store.check([key]):
                return self._store.get(key).decode()
            time.sleep(0.1)
        return None

    def _seen(self, rank: int) -> str:
        if not self._store.check([f"at/{rank}"]):
            return "joining"
        when, where = self._store.get(f"at/{rank}").decode().split(" ", 1)
        return f"{where}, {time.time() - float(when):.0f} s ago"


@contextmanager
def joined(timeout: float) -> Iterator[Team]:
    """Joins the processes that torchrun started, or is alone without it; leaves them at the end.

    An exception inside the block ends this process, with :meth:`Team.explain`'s words; torchrun then ends the others.
    """
    if not 0 < timeout < 1e6:
        raise ValueError(f"--timeout must be a number of seconds above 0, got {timeout:g}")
    limit = timedelta(seconds=timeout)
    if "RANK" in os.environ:
        store, rank, size = next(dist.rendezvous("env://", timeout=limit))
    else:
        store, rank, size = dist.HashStore(), 0, 1
    device = torch.device("cpu")
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
        torch.cuda.set_device(device)
    backend = "gloo" if device.type == "cpu" else "cpu:gloo,cuda:nccl"
    try:
        store = _of_this_start(store, rank, size, timeout)
    except (TimeoutError, dist.DistStoreError) as e:
        raise ValueError(f"rank {rank} of {size}, joining: {e}") from e
    team = Team(store, rank, size, device, timeout)
    try:
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=limit)
        yield team
    except KeyboardInterrupt:
        raise
    except Exception as e:
        print(f"train.py: {team.explain(e)}", file=sys.stderr, flush=True)
        os._exit(1)  # a thread that waits for a process that is gone would keep this one
    dist.destroy_process_group()


def _of_this_start(store: dist.Store, rank: int, size: int, timeout: float) -> dist.Store:
    """The part of a store that is for this start of the processes alone, agreed on by all of them.

    torchrun keeps its store when it starts processes again, with the addresses of those that are gone in it, which new
    ones would try to reach. The first process makes up a name, and tells it to whoever says hello with one of its own.
    """
    mine = secrets.token_hex(8)
    if rank > 0:
        store.set(f"hello/{rank}", mine)
        name = store.get(f"name/{mine}").decode()
        store.set(f"here/{name}/{rank}", "")
        return dist.PrefixStore(name, store)
    missing, until = set(range(1, size)), time.monotonic() + timeout
    while missing:
        for other in sorted(missing):
            if store.check([f"hello/{other}"]):
                store.set(f"name/{store.get(f'hello/{other}').decode()}", mine)
            if store.check([f"here/{mine}/{other}"]):
                missing.remove(other)
        if time.monotonic() > until:
            absent = ", ".join(map(str, sorted(missing)))
            raise TimeoutError(f"rank {absent} of {size} did not join within --timeout {timeout:g} s")
        time.sleep(0.01)
    return dist.PrefixStore(mine, store)


def make_mesh(team: Team, dp: int, cp: int, tp: int) -> DeviceMesh:
    """The mesh of three axes; ``dp=0`` is as many as there are.

    Raises:
        ValueError: axes that do not multiply to the number of processes.
    """
    if min(cp, tp) < 1 or dp < 0:
        raise ValueError(f"--cp and --tp must be at least 1 and --dp at least 0, got {cp}, {tp} and {dp}")
    if dp == 0 and team.size % (cp * tp) == 0:
        dp = team.size // (cp * tp)
    if dp * cp * tp != team.size:
        raise ValueError(
            f"--dp {dp} x --cp {cp} x --tp {tp} is {dp * cp * tp} processes, and there {_are(team.size)}: torchrun "
            f"--nproc-per-node {max(1, dp) * cp * tp} starts as many"
        )
    return team.mesh(dp=dp, cp=cp, tp=tp)


def _are(number: int) -> str:
    return "is 1" if number == 1 else f"are {number}"
