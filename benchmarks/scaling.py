"""What a training step costs each of several processes, counted, beside what hyena.distributed.cost predicts.

    python benchmarks/scaling.py                 # counts; writes results/scaling.json
    python benchmarks/scaling.py --time          # seconds of a step too: on a machine that does nothing else
    python benchmarks/scaling.py --dry-run       # toy sizes; nothing is written

One model on 1, 2 and 4 processes (gloo), spread over one axis of the mesh at a time, float32, Hyena and attention:

- ``FLOPs``: of matrix products, forward, by the formulas of ``torch.utils.flop_counter``.
- ``kept MB``, ``peak MB``: bytes of tensors that are alive after the forward pass, and at most until the backward pass
  has ended, counted as they are made; weights are not among them.
- ``sent MB``: bytes that a process sends in a step, from the collectives that reach the process group; an all-reduce of
  S bytes sends 2 S (R - 1) / R. Gradients of weights are among them.
- ``seconds``: median of steps. Several processes share the machine's cores, each with one thread; predicted is the time
  of one process times the FLOPs of each over its, and times processes over cores where there are more.

Each is a pair, predicted and measured.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch
from measure import machine, table, write
from torch import distributed as dist
from torch import multiprocessing, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from hyena.distributed import context_parallel, shard, tensor_parallel
from hyena.distributed.cost import Cost, Mesh, Work, cost
from hyena.models import CausalLM, CausalLMConfig

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from helpers.live_memory import LiveBytes

HEADS = 4
MIXERS = {"hyena": ("HyenaOperator", {}), "attention": ("Attention", {"num_heads": HEADS, "rotary_base": 1e4})}


class SentBytes(TorchDispatchMode):
    """Bytes that this process sends inside the block, by collective."""

    def __init__(self) -> None:
        super().__init__()
        self.sent: dict[str, float] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "c10d":
            name = func._schema.name.split("::")[1].strip("_")
            self.sent[name] = self.sent.get(name, 0) + self._bytes(name, args)
        return func(*args, **(kwargs or {}))

    def _bytes(self, name: str, args: Any) -> float:
        if name == "barrier":
            return 0
        group = next(dist.ProcessGroup.unbox(a) for a in args if isinstance(a, torch.ScriptObject))
        size, rank = group.size(), group.rank()
        if name == "allreduce":
            return 2 * sum(t.nbytes for t in args[0]) * (size - 1) / size
        x = args[1]
        if name == "alltoall_base":
            counts = args[4] or [x.size(0) // size] * size
            return (sum(counts) - counts[rank]) * x[:1].nbytes
        if name == "allgather_base":
            return x.nbytes * (size - 1)
        if name == "reduce_scatter_base":
            return x.nbytes * (size - 1) / size
        if name == "allgather":
            return sum(t.nbytes for t in x) * (size - 1)
        raise RuntimeError(f"a collective that nobody counted so far: {name}")


class Flops(TorchDispatchMode):
    """FLOPs of matrix products inside the block; torch's own counter puts hooks on every module."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func.namespace == "hyena" and "project" in str(func):
            self.total += 2 * args[0].numel() * args[1].size(0)
        elif func.namespace == "hyena" and "implicit_filter" in str(func):
            self.total += 2 * args[0].size(0) * sum(w.numel() for w in (args[2], args[3], args[6]))
        elif func._overloadpacket in flop_registry:
            self.total += flop_registry[func._overloadpacket](*args, **(kwargs or {}), out_val=out)
        return out


def spread(model: CausalLM, axis: str, mesh: Any) -> nn.Module:
    if axis == "tp":
        return tensor_parallel(model, mesh, check=False)
    for block in model.blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return context_parallel(model, mesh, check=False) if axis == "cp" else model


def all_of(rank: int, processes: int, folder: str, works: list[Work], repeats: int) -> None:
    """One process of several: every mixer along every axis."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store-{processes}", rank=rank, world_size=processes)
    found = {}
    for work in works:
        for axis in ("dp", "cp", "tp") if processes > 1 else ("none",):
            mesh = init_device_mesh("cpu", (processes,), mesh_dim_names=(axis,))
            found[work.mixer, axis] = counted_and_timed(work, axis, mesh, repeats)
    if rank == 0:
        torch.save(found, f"{folder}/found.pt")
    dist.barrier()
    dist.destroy_process_group()


def counted_and_timed(work: Work, axis: str, mesh: Any, repeats: int) -> dict[str, Any]:
    """What a step costs this process."""
    rank, processes = mesh.get_local_rank(), mesh.size()
    torch.manual_seed(0)
    name, options = MIXERS[work.mixer]
    sizes = (work.vocab_size, work.length, work.d_model, work.num_layers)
    model: Any = CausalLM(CausalLMConfig(*sizes, mixer=name, mixer_options=options))
    if processes > 1:
        model = spread(model, axis, mesh)
    tokens = torch.randint(work.vocab_size, (work.rows, work.length + 1))
    tokens = tokens.chunk(processes)[rank] if axis == "dp" else tokens
    x, y = tokens[:, :-1], tokens[:, 1:]
    if axis == "cp":
        x, y = shard(x, mesh), shard(y, mesh)

    def forward() -> torch.Tensor:
        return F.cross_entropy(model(x).flatten(0, 1), y.flatten(), reduction="sum")

    def step() -> None:
        forward().backward()
        model.zero_grad()

    step()  # tables are there then
    found: dict[str, Any] = {}
    with SentBytes() as counted:
        step()
    found["sent"], found["collectives"] = sum(counted.sent.values()), counted.sent
    with Flops() as flops:
        loss = forward()
    found["matmul"] = flops.total
    loss.backward()
    model.zero_grad()
    with LiveBytes() as memory:
        loss = forward()
        time.sleep(0.05)  # gloo's threads let go of what they sent a moment after it has arrived
        found["kept"] = memory.live
        loss.backward()
    found["peak"] = memory.peak
    times = []
    for _ in range(repeats):
        dist.barrier()
        began = time.perf_counter()
        step()
        times.append(time.perf_counter() - began)
    found["seconds"] = median(times) if times else None
    return found


def measured(processes: int, works: list[Work], repeats: int) -> dict[tuple[str, str], dict[str, Any]]:
    with tempfile.TemporaryDirectory() as folder:
        arguments = (processes, folder, works, repeats)
        multiprocessing.start_processes(all_of, arguments, nprocs=processes, start_method="forkserver")
        return torch.load(f"{folder}/found.pt", weights_only=False)


def row(axis: str, processes: int, work: Work, found: dict[str, Any], alone: dict[str, Any]) -> dict[str, Any]:
    """Predicted and measured, in the units of the table."""
    c = cost(work, Mesh() if axis == "none" else Mesh(**{axis: processes}), itemsize=4, weight_itemsize=4)
    whole = cost(work, Mesh(), itemsize=4, weight_itemsize=4)
    share = (c.matmul + c.mixing) / (whole.matmul + whole.mixing)
    seconds = alone["seconds"] and alone["seconds"] * share * max(1.0, processes / (os.cpu_count() or 1))
    return {
        "mixer": work.mixer,
        "axis": axis,
        "processes": processes,
        **_pair("MFLOP", c.matmul / 1e6, found["matmul"] / 1e6),
        **_pair("kept MB", c.kept / 1e6, found["kept"] / 1e6),
        "peak MB": found["peak"] / 1e6,
        "peak over one": found["peak"] / alone["peak"],
        **_pair("sent MB", sent(c) / 1e6, found["sent"] / 1e6),
        **_pair("seconds", seconds, found["seconds"]),
    }


def sent(c: Cost) -> float:
    """Bytes along all axes."""
    return c.dp + c.cp + c.tp


def _pair(name: str, predicted: float | None, got: float | None) -> dict[str, float | None]:
    return {f"{name}, predicted": predicted, name: got}


def main() -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--time", action="store_true", help="seconds of a step too")
    parser.add_argument("--dry-run", action="store_true")
    args = parser.parse_args()
    sizes = {"length": 2048, "rows": 4, "d_model": 64, "num_layers": 2, "vocab_size": 64}
    if args.dry_run:
        sizes |= {"length": 64, "d_model": 16, "num_layers": 1}
    multiprocessing.set_forkserver_preload(["torch", "hyena.distributed", "hyena.models"])
    record: dict[str, Any] = {**machine("cpu"), "dtype": "float32", "sizes": sizes, "rows": []}
    works = [Work(**sizes, mixer=mixer, num_heads=HEADS) for mixer in MIXERS]
    alone: dict[str, dict[str, Any]] = {}
    for processes in (1, 2, 4):
        rows = []
        for (mixer, axis), found in measured(processes, works, 9 * args.time).items():
            one = alone.setdefault(mixer, found)
            rows.append(row(axis, processes, works[list(MIXERS).index(mixer)], found, one))
            record["rows"].append({**rows[-1], "collectives": found["collectives"]})
        print(table(rows), flush=True)
    if not args.dry_run:
        print(f"written: {write('scaling', record)}")


if __name__ == "__main__":
    main()
