"""The benchmark of the CPU's transforms compiles against the kernels' headers."""

from __future__ import annotations

import platform
import shutil
import subprocess
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[2] / "benchmarks" / "transforms.cpp"


@pytest.mark.skipif(not shutil.which("g++") or platform.machine() != "x86_64", reason="it takes g++ for x86")
def test_it_compiles() -> None:
    command = ["g++", "-std=c++17", "-Wall", "-Wextra", "-Werror", "-fsyntax-only", "-mavx512f", "-mfma", str(SOURCE)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
