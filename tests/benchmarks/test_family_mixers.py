"""The benchmark of the mixers at toy sizes: every exported one has a row."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import hyena

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


def test_every_mixer_has_a_row() -> None:
    command = [sys.executable, str(BENCHMARKS / "family_mixers.py"), "--quick"]
    path = os.pathsep.join([str(Path(hyena.__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    ran = subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ, "PYTHONPATH": path})
    lines = [line.split() for line in ran.stdout.splitlines() if line.strip()]
    rows = {line[0] for line in lines[1:]}
    assert {"HyenaOperator", "Attention", "H3", "S5", "Mega", "BigBird", "MonarchMixer"} <= rows
