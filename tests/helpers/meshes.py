"""What a process does to save and load checkpoints over meshes; imported by the processes that the tests start."""

from __future__ import annotations

import os
import signal
import traceback
from pathlib import Path
from typing import Any

import torch
from torch import distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh

from helpers import split
from helpers.processes import in_group
from hyena.distributed import Checkpoints, full_state_dict, sum_gradients

MODELS = ("tied", "striped")


def built(name: str, axes: dict[str, int], seed: int = 1) -> tuple[nn.Module, torch.optim.Optimizer, split.Mesh]:
    """A model over a mesh (one process alone without axes) and its optimizer."""
    torch.manual_seed(seed)
    model = split.MODELS[name]()
    mesh: split.Mesh = {}
    if axes:
        both = init_device_mesh("cpu", tuple(axes.values()), mesh_dim_names=tuple(axes))
        mesh = {axis: both[axis] for axis in axes}
        split.spread(model, mesh)
    return model, torch.optim.AdamW(model.parameters(), lr=1e-2, foreach=False), mesh


def trained(model: nn.Module, optimizer: torch.optim.Optimizer, mesh: split.Mesh, steps: int) -> None:
    x = split.tokens(4)
    for _ in range(steps):
        optimizer.zero_grad()
        scale = mesh["dp"].size() if "dp" in mesh else 1
        (model(split.mine(x, mesh)).square().sum() * scale).backward()
        if "cp" in mesh:
            sum_gradients(model, mesh["cp"])
        optimizer.step()


def save(axes: dict[str, int], folder: Path, asynchronous: bool) -> None:
    """Two steps of training, saved; the weights go on changing while they are written."""
    for name in MODELS:
        model, optimizer, mesh = built(name, axes)
        trained(model, optimizer, mesh, 2)
        checkpoints = Checkpoints(folder / name, model, optimizer)
        checkpoints.save(2, {"seen": 8, "noise": torch.arange(3)}, asynchronous=asynchronous)
        trained(model, optimizer, mesh, 1)
        checkpoints.wait()


def load(axes: dict[str, int], folder: Path, rank: int) -> None:
    """Into other weights, over another mesh; the third step is the one that was not saved."""
    for name in MODELS:
        model, optimizer, mesh = built(name, axes, seed=2)
        found = Checkpoints(folder / name, model, optimizer).load()
        assert found is not None
        step, extra = found
        assert (step, extra["seen"], extra["noise"].tolist()) == (2, 8, [0, 1, 2])
        for after in (2, 3):
            want = torch.load(folder / f"{name}-{after}.pt")
            got = full_state_dict(model)
            assert list(got) == list(want)
            for key, t in want.items():
                # Sums in another order: the first step loads what was saved, the bits too.
                split.close(got[key], t, f"{name}: {key} after step {after}", 1e-12 if after == 2 else 1e-9)
            trained(model, optimizer, mesh, 1)


def plain(folder: Path) -> None:
    """What one process computes, without a mesh."""
    for name in MODELS:
        model, optimizer, _ = built(name, {})
        trained(model, optimizer, {}, 2)
        torch.save(model.state_dict(), folder / f"{name}-2.pt")
        trained(model, optimizer, {}, 1)
        torch.save(model.state_dict(), folder / f"{name}-3.pt")


@in_group
def run(rank: int, processes: int, folder: str, jobs: list[tuple[str, dict[str, int], str, bool]]) -> None:
    """One process of several: saves and loads in turn, and what failed into a file of its own."""
    failed = []
    try:
        for what, axes, where, asynchronous in jobs:
            try:
                if what == "save":
                    save(axes, Path(folder) / where, asynchronous)
                else:
                    load(axes, Path(folder) / where, rank)
            except Exception:
                failed.append(f"{what} of {where} over {axes} on rank {rank}:\n{traceback.format_exc()}")
            dist.barrier()
    finally:
        (Path(folder) / f"failed-{rank}.txt").write_text("\n".join(failed))


def run_until_killed(rank: int, processes: int, folder: str, moment: str, asynchronous: bool) -> None:
    """Saves step 1; while it saves step 2, one process is killed: in its data, or where it writes what comes last."""
    from torch.distributed.checkpoint import filesystem

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{Path(folder) / moment}", rank=rank, world_size=processes)
    model, optimizer, mesh = built("tied", {"tp": processes})
    checkpoints = Checkpoints(Path(folder) / f"of {moment}", model, optimizer)
    checkpoints.save(1, {"seen": 4})
    trained(model, optimizer, mesh, 1)
    if moment == "data" and rank == 1:
        real = filesystem._write_item

        def write(*args: Any, **kwargs: Any) -> Any:
            real(*args, **kwargs)
            os.kill(os.getpid(), signal.SIGKILL)

        filesystem._write_item = write
    if moment == "metadata" and rank == 0:

        class Killing:
            @staticmethod
            def dump(what: Any, file: Any) -> None:
                file.write(b"\x80")
                file.flush()
                os.kill(os.getpid(), signal.SIGKILL)

        filesystem.pickle = Killing  # type: ignore[assignment]
    checkpoints.save(2, {"seen": 8}, asynchronous=asynchronous)
    checkpoints.wait()
