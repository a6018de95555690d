"""The experiment of conversions, at a toy's size: it runs, and its table, JSON and plot say the same."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def test_a_short_run(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    pytest.importorskip("tqdm")
    where = ["--out", str(tmp_path / "out"), "--results", str(tmp_path), "--seeds", "5", "--steps", "40"]
    command = [sys.executable, "-m", "experiments.convert", *where, "--runs", "converted", "scratch"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads((tmp_path / "results.json").read_text())
    assert set(found["validation_loss"]) == {"attention", "converted", "scratch"}
    losses = {name: each["seeds"]["5"] for name, each in found["validation_loss"].items()}
    assert f"seed 5: Hyena from scratch: validation loss {losses['scratch']:.4f}" in done.stdout
    over = found["over_attention"]["converted"]
    assert over["mean"] == over["largest"] == pytest.approx(losses["converted"] - losses["attention"])
    run = found["seeds"]["5"]["converted"]
    assert run["tokens"] == 8 * 12 * 64
    assert run["versions"]["torch"]
    assert all(layer["start"] == "attention" for layer in run["report"]["layers"])
    # From scratch nothing is learned in so few steps.
    assert losses["converted"] < losses["scratch"]
    assert (tmp_path / "results.png").read_bytes()[:4] == b"\x89PNG"
