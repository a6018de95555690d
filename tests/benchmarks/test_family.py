"""The benchmarks of filters and mixers at toy sizes: every exported one is measured, written and drawn."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

import hyena
from helpers.filters import exported
from helpers.mixers import CASES

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
KINDS = {
    "filter": ("family.py", {kind.__name__ for kind in exported()}, ("taps", "train", "step"), ("peak MB", "state")),
    "mixer": (
        "family_mixers.py",
        # nd.py measures grids, and nobody exports what docs/add-your-own.md shows.
        {type(make()).__name__ for make in CASES.values()} - {"HyenaPatches", "GatedConv"},
        ("forward", "train", "step"),
        ("kept MB", "state KB"),
    ),
}


def run(script: str, *options: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(Path(hyena.__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, str(BENCHMARKS / script), *options]
    return subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": path})


@pytest.mark.parametrize("kind", KINDS)
def test_everything_exported_is_measured(kind: str, tmp_path: Path) -> None:
    script, names, times, memory = KINDS[kind]
    sizes = ("--width", "8", "--lengths", "24", "40", "--tokens", "80", "--repeats", "1")
    ran = run(script, *sizes, "--results", str(tmp_path))
    assert ran.returncode == 0, ran.stderr
    record = json.loads((tmp_path / f"family-{kind}s-cpu.json").read_text())
    assert {"device", "threads", "torch", "python", "commit", "dtype", "baseline"} <= set(record)
    rows = {(row[kind], row["L"]): row for row in record["rows"]}
    assert set(rows) == {(name, length) for name in names for length in (24, 40)}
    for (name, _), row in rows.items():
        assert row["parameters K"] > 0, name
        for column in times:
            assert row[f"{column} ms"] > 0, (name, column)
            base = rows[record["baseline"], row["L"]][f"{column} ms"]
            assert math.isclose(row[f"{column} / Hyena"], row[f"{column} ms"] / base), (name, column)
        assert all(row[column] is not None for column in memory if column != "peak MB"), name
    assert (tmp_path / f"family-{kind}s-cpu.png").read_bytes().startswith(b"\x89PNG")
    for name in names:  # and the tables say the same
        assert sum(line.split()[:1] == [name] for line in ran.stdout.splitlines()) == 2


@pytest.mark.parametrize("kind", KINDS)
def test_unknown_names_are_refused(kind: str) -> None:
    found = run(KINDS[kind][0], f"--{kind}s", "S4E")
    assert found.returncode == 2
    assert f"no such {kind}s: S4E; there are Hyena" in found.stderr
