"""Running an experiment's command at a toy's size."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def toy(tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Runs ``python -m experiments.NAME --toy`` and returns its ``results.json``, with what it printed."""
    pytest.importorskip("matplotlib")
    pytest.importorskip("tqdm")

    def run(name: str, *arguments: str) -> dict[str, Any]:
        where = ["--out", str(tmp_path / "out"), "--results", str(tmp_path / "results")]
        command = [sys.executable, "-m", f"experiments.{name}", "--toy", *where, *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
        assert done.returncode == 0, done.stderr[-3000:]
        found = json.loads((tmp_path / "results" / "results.json").read_text())
        pictures = list((tmp_path / "results").glob("*.png"))
        assert pictures, done.stdout
        assert all(path.read_bytes()[:4] == b"\x89PNG" and str(path) in done.stdout for path in pictures)
        assert all("commit" in made for made in found["made"])
        return {**found, "printed": done.stdout}

    return run
