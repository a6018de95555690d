"""The short examples run from top to bottom, one after the other, and stay short."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def run(folder: Path, name: str, *arguments: str) -> str:
    path = os.pathsep.join([str(EXAMPLES.parent / "src"), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, str(EXAMPLES / name), *arguments]
    environment = {**os.environ, "PYTHONPATH": path, "PYTHONUTF8": "1"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_train_and_generate(tmp_path: Path) -> None:
    said = run(tmp_path, "train.py", "3")
    assert "step 3: training loss " in said
    assert os.listdir(tmp_path) == ["shakespeare.pt"]
    by_hand, by_call = run(tmp_path, "generate.py", "JULIET:").split("--- generate() ---")
    assert len(by_hand.rstrip("\n")) >= 60
    assert by_hand.startswith("JULIET:")
    assert len(by_call) > 300
    assert by_call.strip().startswith("JULIET:")


def test_swap(tmp_path: Path) -> None:
    said = run(tmp_path, "swap.py", "2")
    assert "replaced 2" in said
    assert "step 2: loss " in said


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.name)
def test_length(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) < 80
