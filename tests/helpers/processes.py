"""Functions that run in several processes which the tests start, as one group."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import distributed as dist


def in_group(run: Callable[..., None]) -> Callable[..., None]:
    """A function of a rank, of how many processes there are, of their folder and more, in a gloo group of its own.

    Its process ends with it, without Python's own end: a thread of gloo that lets go of the last collective's tensors
    asks for the interpreter, and if Python ends just then it is ended too, which takes the process with it (SIGABRT, in
    one of thirty processes whose last collective had failed; torch 2.13, Python 3.11).
    """

    @functools.wraps(run)
    def joined(rank: int, processes: int, folder: str, *args: Any) -> None:
        torch.set_num_threads(1)
        store = f"file://{Path(folder) / f'store-{processes}'}"
        dist.init_process_group("gloo", init_method=store, rank=rank, world_size=processes)
        try:
            run(rank, processes, folder, *args)
        finally:
            dist.destroy_process_group()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)

    return joined
