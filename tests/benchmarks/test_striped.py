"""The benchmark of StripedHyena at toy sizes, alone and beside another implementation."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import hyena

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"

BESIDE = """
from hyena.checkpoints import load_striped_hyena

def build(config, state):
    if "hyena_layer_idxs" in config:
        return None
    model = load_striped_hyena(state, config)
    def start(ids):
        state = model.init_state(1)
        model.prefill(ids, state)
        return lambda token: model.prefill(token, state)[0]
    return model, start, {0: lambda z: z}
"""


def run(*arguments: str) -> list[list[str]]:
    path = os.pathsep.join([str(Path(hyena.__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, str(BENCHMARKS / "striped.py"), "--dry-run", *arguments]
    ran = subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ, "PYTHONPATH": path})
    return [line.split() for line in ran.stdout.splitlines() if line.strip()]


def test_alone() -> None:
    lines = run()
    assert [line[0] for line in lines] == ["generation", "1", "2", "layer", "IIR", "IIR", "SE", "MR", "LI"]
    assert [line[0] for line in run("--prefill", "300", "--chunks", "64", "100")] == ["D", "32", "32"]


def test_beside_another_implementation(tmp_path: Path) -> None:
    (tmp_path / "other.py").write_text(BESIDE)
    first, second = (line for line in run("--beside", str(tmp_path / "other.py")) if line[0] in "12")
    assert "-" in first or "nan" in first
    assert float(second[3]) < 1e-5
