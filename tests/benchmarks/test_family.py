"""The benchmark of the family's filters, at toy sizes: every exported filter has a row."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import hyena
from helpers.filters import exported

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
PATHS = os.pathsep.join([str(Path(hyena.__file__).parents[1]), os.environ.get("PYTHONPATH", "")])


def dry_run(*options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(BENCHMARKS / "family.py"), "--dry-run", *options]
    return subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": PATHS})


def test_every_filter_is_measured() -> None:
    before = {path: path.stat().st_mtime_ns for path in (BENCHMARKS / "results").iterdir()}
    out = dry_run().stdout
    for kind in exported():
        lines = [line.split() for line in out.splitlines() if line.split()[0] == kind.__name__]
        assert [line[2] for line in lines] == ["64", "96"], kind
        assert all(float(line[5]) > 0 for line in lines)
    assert {path: path.stat().st_mtime_ns for path in (BENCHMARKS / "results").iterdir()} == before


def test_unknown_filters_are_named() -> None:
    found = dry_run("--filters", "S4E")
    assert found.returncode == 2
    assert "no such filters: S4E" in found.stderr
