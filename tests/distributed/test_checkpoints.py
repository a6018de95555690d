"""Checkpoints of any mesh, loaded into any other and into the plain model; and those that were not finished."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from torch import distributed as dist
from torch import multiprocessing

from helpers import meshes, split
from hyena.distributed import Checkpoints

pytestmark = pytest.mark.skipif(not dist.is_available() or not dist.is_gloo_available(), reason="needs gloo")


def run(processes: int, folder: Path, jobs: list[tuple[str, dict[str, int], str, bool]]) -> None:
    multiprocessing.spawn(meshes.run, args=(processes, str(folder), jobs), nprocs=processes)
    failed = [(folder / f"failed-{rank}.txt").read_text() for rank in range(processes)]
    assert not any(failed), "\n".join(failed)


def test_any_mesh_to_any_other(tmp_path: Path) -> None:
    meshes.plain(tmp_path)
    for name in ("one", "two", "four"):
        (tmp_path / name).mkdir()
        for path in tmp_path.glob("*.pt"):
            shutil.copy(path, tmp_path / name)
    meshes.save({}, tmp_path / "one", False)
    split_in_two: list[tuple[str, dict[str, int], str, bool]] = [
        ("load", {"tp": 2}, "one", False),
        ("save", {"tp": 2}, "two", True),
        ("load", {"dp": 2}, "two", False),
        ("load", {"cp": 2}, "two", False),
    ]
    run(2, tmp_path, split_in_two)
    meshes.load({}, tmp_path / "two", 0)
    in_four = [("save", {"dp": 2, "tp": 2}, "four", False), ("load", {"tp": 4}, "four", False)]
    run(4, tmp_path, [*in_four, ("load", {"cp": 2, "tp": 2}, "two", False)])
    meshes.load({}, tmp_path / "four", 0)


@pytest.mark.parametrize(("moment", "asynchronous"), [("data", True), ("metadata", False)])
def test_what_was_interrupted_is_not_loaded(tmp_path: Path, moment: str, asynchronous: bool) -> None:
    with pytest.raises(multiprocessing.ProcessExitedException):
        multiprocessing.spawn(meshes.run_until_killed, args=(2, str(tmp_path), moment, asynchronous), nprocs=2)
    folder = tmp_path / f"of {moment}"
    assert any((folder / "step-000000002").iterdir())  # it had begun
    model, optimizer, _ = meshes.built("tied", {}, seed=2)
    checkpoints = Checkpoints(folder, model, optimizer)
    assert checkpoints.steps() == [1]
    with pytest.raises(ValueError, match=r"no complete checkpoint of step 2 in .*, only of \[1\]"):
        checkpoints.load(2)
    assert checkpoints.load() == (1, {"seen": 4})
    first = meshes.built("tied", {})[0]
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), first.state_dict().values(), strict=True))
    checkpoints.save(2)
    assert checkpoints.steps() == [1, 2]


def test_on_one_process(tmp_path: Path) -> None:
    model, optimizer, _ = meshes.built("tied", {})
    checkpoints = Checkpoints(tmp_path, model, optimizer, keep=2)
    assert checkpoints.load() is None
    for step in range(4):
        checkpoints.save(step, {"step": step}, asynchronous=step % 2 == 1)
    checkpoints.wait()
    assert checkpoints.steps() == [2, 3]
    with pytest.raises(ValueError, match=r"a checkpoint of step 3 in .* already"):
        checkpoints.save(3)
    with pytest.raises(ValueError, match="step must be an integer of at least 0, got -1"):
        checkpoints.save(-1)
    with pytest.raises(ValueError, match="keep must be an integer of at least 1, or None for all, got 0"):
        Checkpoints(tmp_path, model, keep=0)
    for group in optimizer.param_groups:
        group["lr"] = 0.5
    assert checkpoints.load(2) == (2, {"step": 2})
    assert optimizer.param_groups[0]["lr"] == 1e-2
    assert model(split.tokens()).isfinite().all()
