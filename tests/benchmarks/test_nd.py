"""The benchmark of convolutions over grids, at toy sizes: every form has a row, and nothing is written."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import hyena

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
PATHS = os.pathsep.join([str(Path(hyena.__file__).parents[1]), os.environ.get("PYTHONPATH", "")])


def test_every_form_is_measured() -> None:
    before = {path: path.stat().st_mtime_ns for path in (BENCHMARKS / "results").iterdir()}
    command = [sys.executable, str(BENCHMARKS / "nd.py"), "--dry-run"]
    env = {**os.environ, "PYTHONPATH": PATHS}
    out = subprocess.run(command, capture_output=True, text=True, check=True, env=env).stdout
    for form in ("plain", "moved", "grid", "circle", "mirror", "separable"):
        lines = [line.split() for line in out.splitlines() if line.split()[0] == form]
        assert [line[2] for line in lines] == ["5", "8"], form
        assert all(float(line[4]) > 0 for line in lines)
        if form == "plain":
            assert all(float(line[5]) == 1 for line in lines)
    assert {path: path.stat().st_mtime_ns for path in (BENCHMARKS / "results").iterdir()} == before
