"""What the experiments have in common: runs that survive being killed, the schedule, tables over seeds."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("tqdm")

from experiments.shared import runs, training

from helpers import training_job
from hyena.command.folder import locked

ROOT = Path(__file__).parents[2]
GRID = training_job.grid("default", [1, 2])
KILLED = -9

Results = dict[str, dict[str, Any]]


def results(out: Path) -> Results:
    return {path.name: json.loads(path.read_text()) for path in out.glob("*.json")}


def learned(out: Path) -> dict[str, Any]:
    """What must not depend on how the runs were done: all but times."""
    return {
        name: {**each["result"], "history": [{**row, "seconds": 0} for row in each["result"]["history"]]}
        for name, each in results(out).items()
    }


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """As the workers have, or sums are taken in another order."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What is learned by runs that nothing ends."""
    out = tmp_path_factory.mktemp("whole")
    runs.run_all(training_job.work, GRID, out)
    return learned(out)


def killed(out: Path, how: str, *arguments: str) -> None:
    """The command, killed before step 7 of a run of size 5."""
    path = os.pathsep.join(filter(None, (str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH"))))
    given = {"OMP_NUM_THREADS": "1", "PYTHONPATH": path, "END": f"{how}:5:7", "PROCESS": str(out / "process")}
    command = [sys.executable, "-m", "helpers.training_job", "--seeds", "1", "2", "--out", str(out), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, env={**os.environ, **given})
    assert done.returncode == KILLED, done.stderr[-3000:]


def test_a_killed_run_ends_with_the_same_weights(
    tmp_path: Path, whole: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    killed(tmp_path, "kill")
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.json")}
    (state,) = tmp_path.glob("*.pt")
    assert torch.load(state, weights_only=True)["run"]["step"] == 7
    torch.manual_seed(99)
    runs.run_all(training_job.work, GRID, tmp_path)
    assert learned(tmp_path) == whole
    assert "2 of 4 runs have a result" in capsys.readouterr().out
    assert all(path.stat().st_mtime_ns == then for path, then in before.items())
    assert {path.suffix for path in tmp_path.iterdir()} == {".json", ""}  # and the file with the process's number
    assert all(each["made"]["threads"] == 1 for each in results(tmp_path).values())


def test_workers_end_with_a_killed_command_and_learn_the_same(tmp_path: Path, whole: dict[str, Any]) -> None:
    killed(tmp_path, "parent", "--workers", "2")
    worker = int((tmp_path / "process").read_text())
    until = time.monotonic() + 30
    while _runs(worker):
        assert time.monotonic() < until, "the worker goes on without its parent"
        time.sleep(0.05)
    runs.run_all(training_job.work, GRID, tmp_path, workers=2)
    assert learned(tmp_path) == whole


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    status = Path(f"/proc/{process}/stat")  # nobody may be there to take note of its end
    return not status.exists() or status.read_text().rpartition(")")[2].split()[0] != "Z"


@pytest.mark.parametrize("workers", [1, 2])
def test_no_run_begins_after_one_that_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int) -> None:
    monkeypatch.setenv("END", "fail:3:0")
    grid = [{"size": 3, "seed": 1}, *({"size": 5, "seed": seed} for seed in range(20))]
    with pytest.raises(ArithmeticError, match="size 3 fails"):
        runs.run_all(training_job.work, grid, tmp_path, workers=workers)
    assert len(results(tmp_path)) < 15


def test_commands_share_a_folder(tmp_path: Path, whole: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    name = runs.name_of(GRID[1])
    with locked(tmp_path / f"{name}.lock", "busy"):
        runs.run_all(training_job.work, GRID, tmp_path)
    assert f"{runs.label_of(GRID[1])}: another process is at it" in capsys.readouterr().out
    assert set(whole) - set(results(tmp_path)) == {f"{name}.json"}


def test_a_run_does_not_depend_on_what_was_run_before(tmp_path: Path) -> None:
    def work(settings: runs.Settings, place: runs.Place) -> dict[str, Any]:
        return {"number": torch.rand(()).item()}

    runs.run_all(work, GRID, tmp_path / "forward")
    runs.run_all(work, GRID[::-1], tmp_path / "backward")
    assert {n: each["result"] for n, each in results(tmp_path / "forward").items()} == {
        n: each["result"] for n, each in results(tmp_path / "backward").items()
    }


@pytest.mark.parametrize("why", ["another schedule", "cannot be read", "another model at the start"])
def test_a_stale_checkpoint_begins_again(
    tmp_path: Path,
    whole: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    why: str,
) -> None:
    grid = [GRID[-1]]
    monkeypatch.setenv("END", "fail:5:7")
    if why == "another schedule":
        monkeypatch.setenv("LR", "0.01")
    with pytest.raises(ArithmeticError):
        runs.run_all(training_job.work, grid, tmp_path)
    monkeypatch.delenv("END")
    monkeypatch.delenv("LR", raising=False)
    (path,) = tmp_path.glob("*.pt")
    if why == "cannot be read":
        path.write_bytes(path.read_bytes()[:-100])
    elif why == "another model at the start":  # of a library with other defaults
        state = torch.load(path, weights_only=True)
        state["identity"]["model at the start"] = "0"
        torch.save(state, path)
    runs.run_all(training_job.work, grid, tmp_path)
    said = capsys.readouterr().out
    assert f"{runs.label_of(grid[0])}: begins again" in said
    assert why in said
    assert learned(tmp_path).items() <= whole.items()


def test_the_command_says_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["job", "--out", str(tmp_path), "--seeds", "1", "1", "--only", "size=3"])
    given: dict[str, Any] = {"grid": training_job.grid, "work": training_job.work, "report": training_job.report}
    runs.command("", here=tmp_path / "here", **given)
    said = capsys.readouterr().out
    assert "1 of the 2 runs have a result so far" in said
    assert "1 seeds" in said
    written = json.loads((tmp_path / "here" / "results.json").read_text())
    assert [run["made"] for run in written["runs"]] == [0]
    (path,) = tmp_path.glob("*.json")
    path.with_name(f"{runs.name_of({'size': 5, 'seed': 1})}.json").write_text(
        path.read_text().replace('"package": "', '"package": "older')
    )
    monkeypatch.setattr(sys, "argv", [*sys.argv[:-2], "--report"])
    runs.command("", here=tmp_path / "here", **given)
    assert "2 versions of src/hyena" in capsys.readouterr().out


def test_only() -> None:
    grid = [{"mixer": m, "length": n, "seed": s} for m in ("hyena", "attention") for n in (8, 16) for s in (1, 2)]
    assert runs.only(grid, []) == grid
    found = runs.only(grid, ["mixer=hyena", "length=8", "length=16", "seed=2"])
    assert found == [{"mixer": "hyena", "length": n, "seed": 2} for n in (8, 16)]
    with pytest.raises(SystemExit, match=r"no run has 'mixer=mamba'.*mixer=hyena\|attention; length=8\|16"):
        runs.only(grid, ["mixer=hyena", "mixer=mamba"])
    with pytest.raises(SystemExit, match="no run has 'lenght=8'"):
        runs.only(grid, ["lenght=8"])
    with pytest.raises(SystemExit, match="no run has 'hyena'"):
        runs.only(grid, ["hyena"])
    with pytest.raises(SystemExit, match="no run has 'heads=None'"):
        runs.only(grid, ["heads=None"])
    with pytest.raises(SystemExit, match="no run has mixer=hyena and length=8 at once"):
        runs.only([{"mixer": "hyena", "length": 16}, {"mixer": "h3", "length": 8}], ["mixer=hyena", "length=8"])


def test_the_same_settings_are_one_run() -> None:
    grid = [{"a": 1, "seed": 1}, {"seed": 1, "a": 1}, {"a": 1, "seed": 2}]
    assert runs.distinct(grid) == [{"seed": 1, "a": 1}, {"a": 1, "seed": 2}]
    assert runs.name_of({"a": 0.1, "b": [1, 2], "c": "x/y"}) != runs.name_of({"a": 0.1, "b": [1, 3], "c": "x/y"})
    assert "/" not in runs.name_of({"c": "x/y"})


def test_what_json_does_not_take_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(TypeError):
        runs.run_all(lambda settings, place: {"it": torch.zeros(1)}, [{"seed": 1}], tmp_path)
    assert not list(tmp_path.glob("*.json"))


def test_spread_and_tables() -> None:
    assert runs.spread([3.0, 1.0, 2.0, 6.0]) == {"mean": 3.0, "least": 1.0, "largest": 6.0, "seeds": 4}
    found = [
        {"settings": {"length": n, "options": {"b": 1}, "seed": s}, "result": {"loss": n * s, "other": 0}}
        for s in (1, 2, 3)
        for n in (8, 16)
    ]
    assert runs.by_seed(found, "loss") == [
        {"settings": {"length": n, "options": {"b": 1}}, "mean": 2.0 * n, "least": n, "largest": 3 * n, "seeds": 3}
        for n in (8, 16)
    ]


def test_schedule() -> None:
    schedule = training.Schedule(100, 1e-3, warmup=10, floor=0.1)
    factors = [schedule.factor(step) for step in range(100)]
    assert factors[:10] == pytest.approx([k / 11 for k in range(1, 11)])
    expected = [0.55 + 0.45 * math.cos(math.pi * k / 90) for k in range(90)]
    assert factors[10:] == pytest.approx(expected)
    assert factors[10] == 1.0
    assert training.Schedule(7, 1.0).factor(0) == 1.0
    assert training.Schedule(7, 1.0).factor(7) == pytest.approx(0.0)


def test_training_is_adamw_by_the_schedule(tmp_path: Path) -> None:
    """Beside a loop by hand, with the clipped gradient; stopped after the first evaluation that says so."""
    torch.manual_seed(0)
    model, mine = torch.nn.Linear(3, 2), torch.nn.Linear(3, 2)
    mine.load_state_dict(model.state_dict())
    schedule = training.Schedule(20, 0.1, weight_decay=0.2, betas=(0.8, 0.9), warmup=3, clip=0.5)

    def loss(net: torch.nn.Module, step: int) -> torch.Tensor:
        return net(torch.randn(4, 3, generator=training.generator(1, step))).square().sum()

    history = training.train(
        model,
        lambda step: loss(model, step),
        schedule,
        runs.Place("cpu", tmp_path / "state.pt", "run"),
        evaluate=lambda: {"training": float(model.training), "gradients": float(torch.is_grad_enabled())},
        evaluate_every=4,
        until=lambda row: row["step"] >= 8,
    )
    assert [row["step"] for row in history] == [4, 8]
    assert all(row["training"] == row["gradients"] == 0.0 for row in history)
    groups = [{"params": [mine.weight], "weight_decay": 0.2}, {"params": [mine.bias], "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=0.1, betas=(0.8, 0.9))
    losses = []
    for step in range(8):
        for group in optimizer.param_groups:
            group["lr"] = 0.1 * schedule.factor(step)
        value = loss(mine, step)
        optimizer.zero_grad()
        value.backward()
        torch.nn.utils.clip_grad_norm_(mine.parameters(), 0.5)
        optimizer.step()
        losses.append(value.item())
    for got, want in zip(model.parameters(), mine.parameters(), strict=True):
        torch.testing.assert_close(got, want)
    assert history[0]["training_loss"] == pytest.approx(sum(losses[:4]) / 4)
    assert history[1]["training_loss"] == pytest.approx(sum(losses[4:]) / 4)
