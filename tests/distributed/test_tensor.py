"""Channels spread over processes: what one process computes, to rounding, and errors on all of them."""

from __future__ import annotations

from pathlib import Path

import pytest
from torch import distributed as dist
from torch import multiprocessing

from helpers import split_checks

pytestmark = pytest.mark.skipif(not dist.is_available() or not dist.is_gloo_available(), reason="needs gloo")


def check(tmp_path: Path, processes: int, runs: list[tuple[dict[str, int], list[str]]]) -> None:
    multiprocessing.spawn(split_checks.run, args=(processes, str(tmp_path), runs), nprocs=processes)
    failed = [(tmp_path / f"failed-{rank}.txt").read_text() for rank in range(processes)]
    assert not any(failed), "\n".join(failed)


def test_on_two_processes(tmp_path: Path) -> None:
    check(tmp_path, 2, [({"tp": 2}, [name for name in split_checks.CHECKS if name != "context first"])])


def test_on_four_processes(tmp_path: Path) -> None:
    alone = ["HyenaOperator", "model-tied", "spread-tied", "bytes", "disagreement", "refusals"]
    check(
        tmp_path,
        4,
        [
            ({"tp": 4}, alone),
            ({"cp": 2, "tp": 2}, ["model-dna", "spread-tied", "context first"]),
            ({"dp": 2, "tp": 2}, ["model-dna", "spread-tied"]),
            ({"dp": 2, "cp": 2}, ["model-dna"]),
        ],
    )


def test_beside_a_process_that_stops(tmp_path: Path) -> None:
    multiprocessing.spawn(split_checks.run_beside_one_that_stops, args=(2, str(tmp_path)), nprocs=2)
