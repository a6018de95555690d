"""The short examples run from top to bottom, one after the other, and stay short."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import wave
from pathlib import Path

import pytest
import torch

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


def test_denoise(tmp_path: Path) -> None:
    said = run(tmp_path, "denoise.py", "3", "0.25")
    names = ["clean", "noisy", "two_sided", "streamed"]
    assert sorted(os.listdir(tmp_path / "denoise")) == sorted([*(f"{name}.wav" for name in names), "spectrograms.png"])
    samples = {}
    for name in names:
        with wave.open(str(tmp_path / "denoise" / f"{name}.wav")) as file:
            assert file.getparams()[:4] == (1, 2, 16_000, 4_000)
            samples[name] = torch.frombuffer(bytearray(file.readframes(4_000)), dtype=torch.int16).double() / 32767
        assert f"{Path('denoise') / name}.wav: signal to noise" in said
    noise = (samples["noisy"] - samples["clean"]).square().mean().sqrt().item()
    assert noise == pytest.approx(0.1, rel=0.1)
    assert len({tuple(each.tolist()) for each in samples.values()}) == 4
    assert (tmp_path / "denoise" / "spectrograms.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    apart = re.search(r"times as fast as it sounds, (\S+) apart", said)
    assert apart is not None
    assert float(apart[1]) < 1e-4


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.name)
def test_length(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) < 80
