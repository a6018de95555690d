"""The cost model beside what is counted: FLOPs, bytes kept and bytes sent of every axis, at toy sizes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import distributed as dist

import hyena
from hyena import ops

pytestmark = [
    pytest.mark.skipif(not dist.is_available() or not dist.is_gloo_available(), reason="needs gloo"),
    pytest.mark.skipif(
        not ops.has_kernel("implicit_filter", torch.device("cpu")), reason="counts what the kernels keep, not PyTorch"
    ),
]
BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
PATHS = os.pathsep.join([str(Path(hyena.__file__).parents[1]), os.environ.get("PYTHONPATH", "")])


def test_predictions_are_what_is_counted() -> None:
    before = {path: path.stat().st_mtime_ns for path in (BENCHMARKS / "results").iterdir()}
    command = [sys.executable, str(BENCHMARKS / "scaling.py"), "--dry-run"]
    env = {**os.environ, "PYTHONPATH": PATHS}
    out = subprocess.run(command, capture_output=True, text=True, check=True, env=env).stdout
    assert {path: path.stat().st_mtime_ns for path in (BENCHMARKS / "results").iterdir()} == before
    rows = [line.split() for line in out.splitlines() if line.split()[0] in ("hyena", "attention")]
    assert len(rows) == 2 * (1 + 3 + 3)
    for mixer, axis, processes, *numbers in rows:
        flops, counted, kept, measured, _, over_one, sent, on_the_wire = map(float, numbers[:8])
        where = f"{mixer}, {axis}={processes}"
        assert counted == pytest.approx(flops, rel=0.01), where
        assert measured == pytest.approx(kept, rel=0.04), where
        assert on_the_wire == pytest.approx(sent, rel=0.03), where
        assert (axis == "none") == (over_one == 1.0)
