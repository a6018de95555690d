"""benchmarks/transformers_decoding.py runs, at a toy size."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest


def test_every_way_is_timed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.syspath_prepend(Path(__file__).resolve().parents[2] / "benchmarks")
    import transformers_decoding

    sizes = {"context": 32, "width": 16, "layers": 1}
    rows = transformers_decoding.measure(**sizes, device="cpu", tokens=9, rounds=1)
    assert [row["way"] for row in rows] == ["cached", "own generate", "rerun"]
    assert all(row["of"] is None or row["ratio"] == row["ratio"] for row in rows)
    for name in ("transformers_decoding", "measure"):
        sys.modules.pop(name, None)
