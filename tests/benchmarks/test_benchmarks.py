"""The GPU's benchmarks, at toy sizes on the CPU: they must run on the day that there is a GPU."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def benchmarks(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[ModuleType, ModuleType]]:
    """The modules gpu and gpu_measurements."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    import gpu
    import gpu_measurements

    yield gpu, gpu_measurements
    for name in list(sys.modules):
        if name.partition(".")[0] in (
            "gpu",
            "gpu_measurements",
            "gpu_predictions",
            "gpu_sections",
            "gpu_tests",
            "measure",
            "speed",
        ):
            del sys.modules[name]


def test_every_section_is_measured(benchmarks: tuple[ModuleType, ModuleType]) -> None:
    gpu, measurements = benchmarks
    assert list(gpu.SECTIONS) == list(measurements.SECTIONS)


SECTIONS = ["device", "bandwidth", "attention", "flash_fft_conv", "direct_conv", "accuracy", "causality", "one_row"]


@pytest.mark.parametrize("name", [*SECTIONS, "against_fallback"])
def test_sections_give_rows(benchmarks: tuple[ModuleType, ModuleType], tmp_path: Path, name: str) -> None:
    """The first two jobs of each; all of them is what a dry run does."""
    gpu, measurements = benchmarks
    b = measurements.Bench("cpu")
    b.rates = {"copy": 1e10, "matrix product fp32": 1e11}
    jobs = measurements.SECTIONS[name]
    measurements.SECTIONS[name] = lambda b: list(jobs(b))[:2]
    try:
        assert measurements.run(tmp_path, name, b)
    finally:
        measurements.SECTIONS[name] = jobs
    record = json.loads((tmp_path / f"{name}.json").read_text())
    assert record["done"]
    assert record["machine"]["torch"] == torch.__version__
    for row in record["rows"]:
        assert "error" not in row, row
        assert row["value"] is None or row["value"] > 0
        assert (row["ok"] is None) == (row["bar"] is None or row["value"] is None)
    lines = gpu.rows({"stages": {name: {"status": "ok"}}, "sections": {name: record}})
    assert [line[1] for line in lines] == [row["what"] for row in record["rows"]]


def test_what_fails_is_recorded_and_the_next_row_runs(
    benchmarks: tuple[ModuleType, ModuleType], tmp_path: Path
) -> None:
    gpu, measurements = benchmarks

    def raises(error: Exception) -> dict[str, Any]:
        raise error

    measurements.SECTIONS["attention"] = lambda b: [
        ("slow", lambda: measurements.row(0.5, "x", 1.0)),
        ("small", lambda: measurements.row(0.5, "x", 1.0, lower=True)),
        ("too large", lambda: raises(torch.OutOfMemoryError("CUDA error: out of memory"))),
        ("wrong", lambda: raises(ValueError("no such shape"))),
        ("dead", lambda: raises(RuntimeError("CUDA error: unspecified launch failure"))),
        ("never", lambda: measurements.row(2.0, "x", 1.0)),
    ]
    assert not measurements.run(tmp_path, "attention", measurements.Bench("cpu"))
    record = json.loads((tmp_path / "attention.json").read_text())
    stages = {"build": {"status": "ok"}, "attention": {"status": "the device failed"}}
    lines = gpu.rows({"stages": stages, "sections": {"attention": record}})
    assert [(line[1], line[4]) for line in lines] == [
        ("ok", ""),
        ("slow", "FAIL"),
        ("small", "pass"),
        ("too large", "ERROR"),
        ("wrong", "ERROR"),
        ("dead", "ERROR"),
        ("…", "FAIL"),
    ]


def test_a_second_run_keeps_what_it_does_not_measure(
    benchmarks: tuple[ModuleType, ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu, _ = benchmarks
    monkeypatch.setattr(gpu, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(gpu, "ROOT", tmp_path)
    for name, commit in (("memory", "before"), ("device", "abc"), ("accuracy", "abc")):
        run = gpu.Run(argparse.Namespace(budget=10, dry_run=False, out=tmp_path / "out", commit=commit))
        section = {"machine": {"device": "Some GPU 80GB"}, "done": True, "rows": []}
        (run.folder / f"{name}.json").write_text(json.dumps(section))
        run.stages[name] = {"status": "ok"}
        path = gpu.record(run)
    assert path == tmp_path / "results" / "gpu-some-gpu-80gb.json"
    kept = json.loads(path.read_text())
    assert set(kept["sections"]) == set(kept["stages"]) == {"device", "accuracy"}, "none of another commit"
    assert kept["stages"]["device"] == {"commit": "abc", "date": kept["stages"]["device"]["date"], "status": "ok"}
    assert (tmp_path / "out" / path.name).read_text() == path.read_text()


def test_a_command_that_takes_too_long_is_stopped(
    benchmarks: tuple[ModuleType, ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu, _ = benchmarks
    monkeypatch.setattr(gpu, "ROOT", tmp_path)
    monkeypatch.setitem(gpu.STAGES, "tests", 0.3)
    run = gpu.Run(argparse.Namespace(budget=60))
    found = run.command("tests", ["sleep", "30"], "log")
    assert found["status"] == "stopped after 0 s"
    assert found["seconds"] < 5
    assert run.command("build", ["false"], "log")["status"] == "exit status 1"


def test_what_is_stopped_may_say_what_it_has_found(
    benchmarks: tuple[ModuleType, ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C first, and the end only for what does not listen."""
    gpu, _ = benchmarks
    monkeypatch.setattr(gpu, "ROOT", tmp_path)
    monkeypatch.setitem(gpu.STAGES, "tests", 4)
    run = gpu.Run(argparse.Namespace(budget=60))
    says = "import time\ntry: time.sleep(60)\nexcept KeyboardInterrupt: print('two failed')"
    found = run.commands("tests", {"a": [sys.executable, "-c", says], "b": ["true"]}, 2)
    assert found["a"]["status"] == "stopped after 2 s"
    assert found["b"]["status"] == "ok"
    assert (run.folder / "a").read_text() == "two failed\n"


def test_a_package_that_does_not_load_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "hyena").mkdir()
    (tmp_path / "hyena" / "__init__.py").write_text("raise ImportError('no such symbol')")
    command = [sys.executable, str(BENCHMARKS / "gpu.py"), "--dry-run", "--only", "device", "--prebuilt", str(tmp_path)]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == 1
    assert ran.stderr.strip().splitlines()[-1] == f"{tmp_path}: ImportError: no such symbol"


def test_predictions_stand_beside_what_is_measured(benchmarks: tuple[ModuleType, ModuleType]) -> None:
    gpu, _ = benchmarks
    rows = [
        {"what": "recurrence forward bf16 L=4096", "value": 0.3, "unit": "", "ms": 1.0},
        {"what": "recurrence forward+backward bf16 L=4096", "value": 0.3, "unit": "", "ms": 6.5},
    ]
    found = gpu.predicted_rows({"bandwidth": {"rows": rows}})
    assert found == [
        ("predictions", "recurrence forward bf16 L=4096", "1 ms", "1.2 to 1.7", "0.83 of the least"),
        ("predictions", "recurrence backward bf16 L=4096", "5.5 ms", "4.5 to 7", ""),
    ]


def test_tests_that_are_named_are_there(benchmarks: tuple[ModuleType, ModuleType]) -> None:
    import gpu_tests

    for path in gpu_tests.FIRST:
        assert (BENCHMARKS.parent / path).exists()
    for test in gpu_tests.ALONE:
        file, name = test.split("::")
        assert f"def {name}(" in (BENCHMARKS.parent / file).read_text()
