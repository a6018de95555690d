"""Sharded and replicated weights: mixed precision, initialisation, kept spectra, compiled blocks."""

from __future__ import annotations

from pathlib import Path

import pytest
from torch import distributed as dist
from torch import multiprocessing

from helpers import weights

pytestmark = pytest.mark.skipif(not dist.is_available() or not dist.is_gloo_available(), reason="needs gloo")


def check(tmp_path: Path, processes: int, runs: weights.Runs) -> None:
    multiprocessing.spawn(weights.run, args=(processes, str(tmp_path), runs), nprocs=processes)
    failed = [(tmp_path / f"failed-{rank}.txt").read_text() for rank in range(processes)]
    assert not any(failed), "\n".join(failed)


def test_on_two_processes(tmp_path: Path) -> None:
    alone = ["ddp", "precision", "cache", "recomputed", "compiled"]
    check(tmp_path, 2, [({"dp": 2}, alone), ({"tp": 2}, ["meta", "cache", "compiled"])])


def test_on_four_processes(tmp_path: Path) -> None:
    check(tmp_path, 4, [({"dp": 2, "tp": 2}, ["ddp", "precision", "meta"])])
