"""Rows spread over processes: what one process computes, to rounding, and errors on all of them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import distributed as dist
from torch import multiprocessing
from torch.distributed.device_mesh import init_device_mesh

from helpers import spread
from helpers.mixers import CASES
from hyena import HyenaOperator
from hyena.distributed import context_parallel

pytestmark = pytest.mark.skipif(not dist.is_available() or not dist.is_gloo_available(), reason="needs gloo")


def check(tmp_path: Path, processes: int, names: list[str]) -> None:
    multiprocessing.spawn(spread.run, args=(processes, str(tmp_path), names), nprocs=processes)
    failed = [(tmp_path / f"failed-{rank}.txt").read_text() for rank in range(processes)]
    assert not any(failed), "\n".join(failed)


def test_on_two_processes(tmp_path: Path) -> None:
    check(tmp_path, 2, list(spread.CHECKS))


def test_on_four_processes(tmp_path: Path) -> None:
    mixers = ["HyenaOperator", "HyenaOperator-order-3", "sizes", "model-hyena"]
    check(tmp_path, 4, [*mixers, "bytes", "memory", "disagreement", "refusals", "fsdp"])


def test_beside_a_process_that_stops(tmp_path: Path) -> None:
    multiprocessing.spawn(spread.run_beside_one_that_stops, args=(2, str(tmp_path)), nprocs=2)


@pytest.mark.usefixtures("process_group")
def test_on_one_process() -> None:
    mesh = init_device_mesh("cpu", (1,), mesh_dim_names=("cp",))
    spread.same_as_one_process(lambda: HyenaOperator(8, 40, dtype=torch.float64), spread.inputs(), mesh)
    spread.second_derivatives(mesh)
    with pytest.raises(TypeError, match="expected a DeviceMesh of one axis, got a str"):
        context_parallel(HyenaOperator(8, 40), "cp")  # type: ignore[arg-type]
    two = init_device_mesh("cpu", (1, 1), mesh_dim_names=("dp", "cp"))
    with pytest.raises(ValueError, match=r"mesh of one axis, got 2 \(dp, cp\)"):
        context_parallel(HyenaOperator(8, 40), two)


@pytest.mark.usefixtures("process_group")
@pytest.mark.parametrize("name", [n for n in CASES if n not in spread.SPREAD])
def test_what_cannot_be_spread_is_refused_on_one_process_too(name: str) -> None:
    mesh = init_device_mesh("cpu", (1,), mesh_dim_names=("cp",))
    with pytest.raises(ValueError, match=f"{name.split('-')[0]}: the channels of a .* meet between its projections"):
        context_parallel(CASES[name](), mesh)
    with pytest.raises(ValueError, match=r"num_kv_heads=1 below num_heads=2 cannot be spread"):
        context_parallel(CASES["Attention-rotary"](), mesh)
