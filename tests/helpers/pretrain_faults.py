"""``examples/pretrain/train.py``, with faults: a script for torchrun, and processes that start fast.

    pretrain_faults.py '[{"attempt": 0, "rank": 1, "step": 7, "what": "kill"}]' <options of train.py>

``step`` counts the optimizer's steps of an attempt for ``kill``, ``raise`` and ``sleep``, which happen between the
backward pass and the update; for the others it is that of the checkpoint. ``half`` cuts off what the process has
written of it and kills, ``data`` kills when that is whole, ``name`` when all is written but the file that says so has
not got its name.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import secrets
import signal
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint import FileSystemWriter
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, Std
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

import hyena.distributed

PRETRAIN = Path(__file__).resolve().parents[2] / "examples" / "pretrain"


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def at_update(what: str, step: int) -> None:
    real, steps = hyena.distributed.clip_grad_norm_, 0

    def clip(*args: Any, **kwargs: Any) -> Any:
        nonlocal steps
        steps += 1
        if steps == step:
            if what == "kill":
                die()
            if what == "raise":
                raise ValueError("a fault that a test made")
            time.sleep(600)
        return real(*args, **kwargs)

    hyena.distributed.clip_grad_norm_ = clip


def at_writing(what: str, step: int) -> None:
    write, finish = FileSystemWriter.write_data, FileSystemWriter.finish
    folder = f"step-{step:09d}"

    def write_data(self: FileSystemWriter, *args: Any) -> Any:
        out = write(self, *args)
        if folder in str(self.path) and what in ("half", "data"):
            for file in Path(self.path).glob("*.distcp") if what == "half" else ():
                os.truncate(file, file.stat().st_size // 2)
            die()
        return out

    def finished(self: FileSystemWriter, **kwargs: Any) -> Any:
        if folder in str(self.path) and what == "name":
            self.fs.rename = lambda *_: die()
        return finish(self, **kwargs)

    FileSystemWriter.write_data, FileSystemWriter.finish = write_data, finished  # type: ignore[method-assign]


def run(faults: str, options: list[str]) -> None:
    """One process."""
    torch.set_num_threads(1)
    attempt, rank = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)), int(os.environ.get("RANK", 0))
    for fault in json.loads(faults):
        if (fault["attempt"], fault["rank"]) == (attempt, rank):
            on_update = fault["what"] in ("kill", "raise", "sleep")
            (at_update if on_update else at_writing)(fault["what"], fault["step"])
    sys.path.insert(0, str(PRETRAIN))
    from train import main

    main(options)


def _run_logged(faults: str, options: list[str], log: str) -> None:
    with Path(log).open("w") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    run(faults, options)


def alone(faults: list[dict[str, Any]], options: list[str], log: Path) -> int:
    """Runs one process without torchrun; returns its exit code."""
    process = _forks().Process(target=_run_logged, args=(json.dumps(faults), options, str(log)))
    process.start()
    process.join()
    assert process.exitcode is not None
    return process.exitcode


def elastic(processes: int, restarts: int, faults: list[dict[str, Any]], options: list[str], logs: Path) -> bool:
    """Runs processes under torchrun's agent, in this one; returns whether they ended well."""
    _forks()
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        run_id=secrets.token_hex(4),
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=restarts,
        start_method="forkserver",
        logs_specs=DefaultLogsSpecs(str(logs), redirects=Std.ALL),
    )
    try:
        elastic_launch(config, run)(json.dumps(faults), options)
    except ChildFailedError:
        return False
    return True


def _forks() -> Any:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "hyena.distributed", "torch.distributed.checkpoint"])
    return context


if __name__ == "__main__":
    run(sys.argv[1], sys.argv[2:])
