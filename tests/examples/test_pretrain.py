"""examples/pretrain on several processes: killed, it ends as if it had not been; spread, it learns the same."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import distributed as dist
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

import hyena
from helpers.pretrain_faults import alone, elastic

pytest.importorskip("tqdm")
pytest.importorskip("matplotlib")
pytestmark = pytest.mark.skipif(not dist.is_available() or not dist.is_gloo_available(), reason="needs gloo")

FAULTS = Path(__file__).resolve().parents[1] / "helpers" / "pretrain_faults.py"
PATHS = os.pathsep.join([str(Path(hyena.__file__).parents[1]), os.environ.get("PYTHONPATH", "")])

STEPS, BLOCKS, LENGTH, BATCH = 10, 11, 24, 4  # 40 blocks of 11 an epoch: four epochs are begun
SIZES = {"steps": STEPS, "batch": BATCH, "length": LENGTH, "start-length": 6, "length-warmup": 4, "shuffle": 4}
SIZES |= {"layers": 2, "width": 8, "warmup": 2, "lr": 0.01, "save-every": 3, "timeout": 60}


def options(out: Path, *more: str) -> list[str]:
    text = out.parent / "text.txt"
    if not text.exists():
        text.write_text("".join(chr(97 + (i * i) % 23) for i in range(BLOCKS * LENGTH - 8)))
    sizes = [f"--{name}={value}" for name, value in SIZES.items()]
    return [*sizes, "--dtype=float64", "--data", str(text), "--out", str(out), *more]


def train(out: Path, processes: int = 1, *more: str, faults: Any = (), restarts: int = 0, fails: bool = False) -> str:
    """Trains; returns what all processes said."""
    logs = out.parent / f"logs-{out.name}-{len(list(out.parent.glob('logs-*')))}"
    if processes == 1:
        logs.mkdir()
        failed = alone(faults, options(out, *more), logs / "all.log") != 0
    else:
        failed = not elastic(processes, restarts, faults, options(out, *more), logs)
    said = "\n".join(path.read_text() for path in sorted(logs.rglob("*.log")))
    assert failed == fails, said
    return said


def losses(out: Path, what: str = "loss") -> list[float]:
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    return [line[what] for line in lines]


def blocks(out: Path) -> list[list[int]]:
    """What each step saw, on all processes together, in their order."""
    seen: list[list[int]] = [[] for _ in range(STEPS)]
    for path in sorted(out.glob("data-*.jsonl")):
        for line in map(json.loads, path.read_text().splitlines()):
            seen[line["step"] - 1] += line["blocks"]
    return seen


def check_blocks(out: Path) -> None:
    """In every epoch each block once."""
    seen = [block for step in blocks(out) for block in step]
    assert len(seen) == STEPS * BATCH
    for at in range(0, len(seen), BLOCKS):
        epoch = seen[at : at + BLOCKS]
        assert len(set(epoch)) == len(epoch)
        assert set(epoch) <= set(range(BLOCKS))


def weights(out: Path) -> dict[str, torch.Tensor]:
    """Everything that the last checkpoint has, by name."""
    last = max((out / "checkpoints").glob("step-*"))
    assert last.name == f"step-{STEPS:09d}"
    dcp_to_torch_save(last, out / "whole.pt")
    found: dict[str, torch.Tensor] = {}

    def flatten(name: str, value: Any) -> None:
        if isinstance(value, dict):
            for key, entry in value.items():
                flatten(f"{name}/{key}", entry)
        elif isinstance(value, torch.Tensor):
            found[name] = value

    flatten("", torch.load(out / "whole.pt"))
    assert sum("exp_avg_sq" in name for name in found) > 20, list(found)
    return found


def assert_same(a: Path, b: Path) -> None:
    assert losses(a) == losses(b)
    assert blocks(a) == blocks(b)
    x, y = weights(a), weights(b)
    assert list(x) == list(y)
    for name, t in x.items():
        assert torch.equal(t, y[name]), name


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one process that nothing happened to."""
    out = tmp_path_factory.mktemp("single") / "out"
    train(out)
    check_blocks(out)
    return out


def test_killed_under_torchrun(tmp_path: Path) -> None:
    """Two processes: torchrun starts them again, from the last whole checkpoint, to the same bits."""
    faults = [
        {"attempt": 0, "rank": 1, "step": 7, "what": "kill"},  # while the checkpoint of step 6 is written, or after
        {"attempt": 1, "rank": 0, "step": 9, "what": "half"},
    ]
    killed, through = tmp_path / "killed", tmp_path / "through"
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--max-restarts=2"]
    command += [str(FAULTS), json.dumps(faults), *options(killed, "--dp=2", "--dtype=float32")]
    env = {**os.environ, "PYTHONPATH": PATHS}
    said = subprocess.run([sys.executable, *command], capture_output=True, text=True, env=env, timeout=240)
    assert said.returncode == 0, said.stdout + said.stderr
    at = [line.split("step-")[1][:9] for line in said.stdout.splitlines() if line.startswith("going on from")]
    assert at in (["000000003", "000000006"], ["000000006", "000000006"])
    check_blocks(killed)
    train(through, 2, "--dp=2", "--dtype=float32")
    assert_same(killed, through)


def test_a_checkpoint_that_is_not_whole_is_never_loaded(tmp_path: Path, single: Path) -> None:
    out = tmp_path / "out"
    for step, what, goes_on_from in ((3, "half", 0), (6, "data", 0), (9, "name", 3), (10, "", 6)):
        faults = [{"attempt": 0, "rank": 0, "step": step, "what": what}] if what else []
        said = train(out, faults=faults, fails=bool(what))
        if goes_on_from:
            assert f"going on from {out / 'checkpoints' / f'step-{goes_on_from:09d}'} " in said
        else:
            assert "going on from" not in said
        assert bool(what) == (not (out / "checkpoints" / f"step-{step:09d}" / ".metadata").exists())
    assert_same(out, single)


def test_killed_and_gone_on_with_by_others(tmp_path: Path, single: Path) -> None:
    """Four processes, of which one is killed; then two; then one. No block is lost or seen twice."""
    out = tmp_path / "out"
    said = train(out, 4, "--cp=2", faults=[{"attempt": 0, "rank": 3, "step": 5, "what": "kill"}], restarts=1)
    assert "mesh {'dp': 2, 'cp': 2, 'tp': 1}" in said
    assert_close(out, single)
    for processes, axes in ((2, "--tp=2"), (1, "--dp=1")):
        shutil.rmtree(max((out / "checkpoints").glob("step-*")))  # the last
        assert "going on from" in train(out, processes, axes)
        assert_close(out, single)


@pytest.mark.parametrize("axis", ["dp", "cp", "tp"])
def test_it_learns_the_same_on_two_processes(tmp_path: Path, single: Path, axis: str) -> None:
    train(tmp_path / "out", 2, f"--{axis}=2")
    assert_close(tmp_path / "out", single)


def assert_close(out: Path, single: Path) -> None:
    """What AdamW makes of the order of sums: it divides by the size of the gradient, so also by rounding's."""
    check_blocks(out)
    assert blocks(out) == blocks(single)
    for what in ("loss", "grad_norm"):  # a factor of the gradient AdamW would not show
        got, want = torch.tensor(losses(out, what)), torch.tensor(losses(single, what))
        torch.testing.assert_close(got, want, rtol=1e-6, atol=0)
    assert losses(single)[-1] < 0.9 * losses(single)[0]


def test_a_process_that_raises_stops_all_with_its_number(tmp_path: Path) -> None:
    fault = {"attempt": 0, "rank": 1, "step": 2, "what": "raise"}
    said = train(tmp_path / "out", 2, "--dp=2", faults=[fault], fails=True)
    first = "rank 1 of 2, step 2, computing: ValueError: a fault that a test made"
    assert f"train.py: {first}\n" in said
    assert f"train.py: rank 0 of 2, step 2, computing: stopped, because another process did ({first})\n" in said


def test_a_process_that_does_not_come_is_named(tmp_path: Path) -> None:
    fault = {"attempt": 0, "rank": 1, "step": 2, "what": "sleep"}
    said = train(tmp_path / "out", 2, "--cp=2", "--timeout=5", faults=[fault], fails=True)
    assert "a process has stopped, or did not come within --timeout 5 s" in said
    assert re.search(r"rank 1 was last seen step 2, computing, [5-9] s ago", said), said


@pytest.mark.parametrize(
    ("processes", "more", "message"),
    [
        (2, ["--dp=3"], "--dp 3 x --cp 1 x --tp 1 is 3 processes, and there are 2: torchrun --nproc-per-node 3"),
        (1, ["--cp=2"], "--dp 0 x --cp 2 x --tp 1 .*, and there is 1: torchrun --nproc-per-node 2 starts as many"),
        (2, ["--dp=2", "--batch=3"], "--batch 3 blocks do not divide by --dp 2"),
        (1, ["--length=20"], "--length 20 is not --start-length 6 doubled some times"),
        (2, ["--cp=2", "--start-length=1", "--length=16"], "--start-length 1 is shorter than --cp 2"),
        (1, ["--data", "nothing.txt"], "nothing.txt does not exist"),
        (1, ["--steps=1"], "--warmup 2 is more than --steps 1"),
        (1, ["--lr=inf"], "--lr must be a number that is not negative, got inf"),
        (1, ["--mixer=Hyena"], "Hyena.*HyenaOperator"),
        (1, ["--save-every=0"], "--save-every must be at least 1, got 0"),
        (1, ["--timeout=0"], "--timeout must be a number of seconds above 0, got 0"),
    ],
)
def test_bad_input_is_named(tmp_path: Path, processes: int, more: list[str], message: str) -> None:
    said = train(tmp_path / "out", processes, *more, fails=True)
    assert re.search(f"train.py: .*{message}", said), said
    assert "Traceback" not in said


def test_another_run_is_not_gone_on_with(tmp_path: Path) -> None:
    train(tmp_path / "out")
    said = train(tmp_path / "out", 1, "--seed=1", fails=True)
    assert "has a run with other settings: seed 0 (now 1). Choose another --out, or --restart" in said
    assert "going on" not in train(tmp_path / "out", 1, "--seed=1", "--restart", "--mlp=gelu")
    # As a folder of a version without this setting, whose models had GELU.
    settings = json.loads((tmp_path / "out" / "run.json").read_text())
    assert settings.pop("mlp") == "gelu"
    (tmp_path / "out" / "run.json").write_text(json.dumps(settings))
    said = train(tmp_path / "out", 1, "--seed=1", fails=True)
    assert "has a run with other settings: mlp gelu (now swiglu)" in said
    assert "going on from" in train(tmp_path / "out", 1, "--seed=1", "--mlp=gelu")
