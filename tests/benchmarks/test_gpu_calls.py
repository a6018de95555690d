"""benchmarks/gpu_calls.sh, as far as it goes without a GPU: each call runs what it would run there, at toy sizes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import hyena

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "gpu_calls.sh"
CALLS = {
    "check": ["smoke.txt"],
    "tune": ["tune.json", "tune.log"],
    "peers": ["cudnn.json", "cudnn.log"],
    "profile": ["ncu.txt"],
    "record": ["gpu-dry-run.json", "table.txt"],
}


def call(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    base = folder / "packages" / "base"
    base.mkdir(parents=True)
    (base / "hyena").symlink_to(Path(hyena.__file__).parent)
    environment = os.environ | {
        "PACKAGES": str(folder / "packages"),
        "OUT": str(folder / "out"),
        "PYTHON": sys.executable,
        "OMP_NUM_THREADS": "1",
    }
    return subprocess.run([SCRIPT, *words], env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("name", CALLS)
def test_calls_run_at_toy_sizes(tmp_path: Path, name: str) -> None:
    ran = call(tmp_path, "--dry-run", name)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    for file in CALLS[name]:
        text = (tmp_path / "out" / file).read_text()
        assert text
        if file.endswith(".json"):
            assert json.loads(text)
    assert len(list((tmp_path / "out").iterdir())) <= 8


def test_a_call_that_is_not_known(tmp_path: Path) -> None:
    assert call(tmp_path, "tunes").returncode == 2
