"""The fine-tuning example runs from top to bottom on its chromosome, and what it saves is read back."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import torch

from hyena.checkpoints import load_hyenadna
from hyena.genomics import classify, read_fasta

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "examples" / "dna"


def test_fine_tuning(tmp_path: Path) -> None:
    path = os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, str(EXAMPLE / "classify.py"), "2", "2"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert len(re.findall(r"step 2: loss ", done.stdout)) == 2
    assert len(re.findall(r"accuracy on held-out windows, strands=\w+: 0\.\d+", done.stdout)) == 2
    model = load_hyenadna(tmp_path / "cryptosporidium-real-or-shuffled")
    assert classify(model, ["ACGT" * 20]).shape == (1, 2)
    assert torch.isfinite(classify(model, ["ACGT" * 20])).all()


def test_the_chromosome() -> None:
    (record,) = read_fasta(EXAMPLE / "cryptosporidium-chr1.fa.gz", alphabet="ACGTN")
    assert "NC_006980.1" in record.name
    assert len(record) == 875_659
