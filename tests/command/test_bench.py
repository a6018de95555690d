"""``hyena bench``: what it measures, says and refuses."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch

import hyena
from helpers.command import error
from hyena.command import bench, main
from hyena.command.bench import Row, crossover


def test_bench(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    pytest.importorskip("matplotlib")
    out = tmp_path / "b"
    given = ["bench", "--out", str(out), "--width", "64", "--lengths", "16,64", "--seconds", "60", "--device", "cpu"]
    threads = torch.get_num_threads()
    try:
        assert main([*given, "--threads", "1"]) == 0
    finally:
        torch.set_num_threads(threads)
    said = capsys.readouterr().out
    found = json.loads((out / "bench.json").read_text())
    assert [(row["length"], row["batch"]) for row in found["rows"]] == [(16, 512), (64, 128)]
    for row in found["rows"]:
        for what in ("forward", "training"):
            assert row["ratio"][what] == pytest.approx(row["attention"][what] / row["hyena"][what])
            assert f"{row['hyena'][what]:.2f}" in said
    assert found["machine"]["hyena"] == hyena.__version__
    assert set(found["crossover"]) == {"forward", "training"}
    assert (out / "bench.png").stat().st_size > 5000
    assert len(re.findall(r"(Hyena|attention) (overtakes|is faster)", said)) == 2


def row(length: int, ratio: float | None) -> Row:
    times = {"forward": None, "training": None} if ratio is None else {"forward": ratio, "training": ratio}
    return Row(length, 1, {"forward": 1.0, "training": 1.0}, times)


def test_where_hyena_overtakes() -> None:
    assert crossover([row(128, 0.5), row(512, 2.0)], "forward") == pytest.approx(256)
    assert crossover([row(128, 0.25), row(256, 0.5), row(1024, 1.0), row(2048, 4.0)], "training") == pytest.approx(1024)
    assert crossover([row(128, 2.0), row(256, 0.5), row(1024, 2.0)], "training") == pytest.approx(512)  # from there on
    assert crossover([row(128, 1.5), row(256, 3.0), row(512, None)], "forward") == 128
    assert crossover([row(128, 0.5), row(256, 0.9)], "forward") is None
    assert crossover([row(128, None)], "forward") is None


def test_attention_that_takes_too_long_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(call, device, seconds):
        return 1e5 if "Attention" in str(call.__closure__) else 1.0

    monkeypatch.setattr(bench, "_median", slow)
    rows = bench.measure([16, 32, 64], 64, torch.device("cpu"), torch.float32, 8.0, shown=False)
    assert [each.attention["forward"] for each in rows] == [1e5, None, None]
    assert [each.hyena["forward"] for each in rows] == [1.0] * 3
    assert rows[2].ratio("training") is None
    assert " -" in bench.table(rows, "here")


def test_what_cannot_be_measured(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    given = ["bench", "--out", tmp_path / "b", "--no-plot"]
    assert "--width must be a multiple of 64, got 100" in error(capsys, [*given, "--width", "100"])
    assert "--lengths must grow, got '64,32'" in error(capsys, [*given, "--lengths", "64,32"])
    assert "--lengths are numbers of positions" in error(capsys, [*given, "--lengths", "64,x"])
    assert "--seconds must be more than 0" in error(capsys, [*given, "--seconds", "0"])
    assert "--threads must be at least 1" in error(capsys, [*given, "--threads", "0"])
    assert not (tmp_path / "b").exists()
