"""The stage ``tests`` of gpu.py: the tests that carry the marker ``cuda``, those that say most first."""

from __future__ import annotations

import importlib.util
import os
import sys
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

if TYPE_CHECKING:
    from gpu import Run

FIRST = [f"tests/ops/test_{name}.py" for name in ("cuda", "tiers", "recurrence", "gated_conv", "direct_conv")]
FIRST += [
    f"tests/ops/test_{name}.py" for name in ("cuda_graphs", "spectrum", "short_conv", "packing", "recurrence_bias")
]
FIRST += ["tests/ops", "tests/mixers", "tests/conv", "tests"]
# These take 16 to 28 GiB, or most of a minute of float64 transforms: in a process of their own, beside the others.
ALONE = [
    f"tests/ops/test_cuda.py::test_{name}"
    for name in (
        "plans_of_every_size_that_a_block_may_have",
        "rows_beyond_two_to_the_31_elements",
        "long_rows_beyond_two_to_the_31_elements",
        "a_training_step_takes_a_quarter_of_the_memory",
    )
]
MOST_PROCESSES = 12


def tests(run: Run) -> None:
    """Runs the tests: those of the kernels, and beside them the large ones; then, if time is left, the fallback's."""
    environment = {"HYENA_REQUIRE_CUDA": "0" if run.args.dry_run else "1", "OMP_NUM_THREADS": "1"}
    began, reports = time.monotonic(), [run.folder / f"tests-{name}.xml" for name in ("most", "alone", "fallback")]
    most, alone, fallback = (pytest(report) for report in reports)
    processes = max(1, min(MOST_PROCESSES, (os.cpu_count() or 1) * 3 // 4))
    without = [f"--deselect={test}" for test in ALONE]
    few = ["--collect-only", "-q"] if run.args.dry_run else []
    kernels = ["-k", "not cuda-fallback"]
    found = run.stages["tests"] = {"status": "interrupted"}
    ran: dict[str, dict[str, Any]] = {}
    try:
        both = {
            "tests.log": [*most, *side_by_side(processes), *few, *kernels, *without, *FIRST],
            "tests-alone.log": [*alone, *side_by_side(1), *few, *ALONE],
        }
        ran = run.commands("tests", both, **environment)
        left = run.limit("tests") - (time.monotonic() - began)
        if left > 20 and not run.args.dry_run:
            rest = [*fallback, *side_by_side(processes), "-k", "cuda-fallback", "tests"]
            ran |= run.commands("tests", {"tests-fallback.log": rest}, left, **environment)
    finally:
        found |= summary(reports)
        found["tail"] = [line for log in ran for line in tail(run.folder / log, 12)]
        wrong = [f"{log}: {each['status']}" for log, each in ran.items() if each["status"] != "ok"]
        if ran:
            found |= {"status": "; ".join(wrong) or "ok", "seconds": round(time.monotonic() - began, 1)}


def pytest(report: Path) -> list[str]:
    """The beginning of a command."""
    command = [sys.executable, "-m", "pytest", "-m", "cuda", "-q", "-rf", "--maxfail=25", f"--junitxml={report}"]
    command += ["-p", "no:cacheprovider", "-p", "no:benchmark"]
    return command + (["--timeout=120"] if importlib.util.find_spec("pytest_timeout") is not None else [])


def side_by_side(processes: int) -> list[str]:
    """The option for so many processes, where there is xdist."""
    return ["-n", str(processes)] if importlib.util.find_spec("xdist") is not None else []


def summary(reports: list[Path]) -> dict[str, Any]:
    """Counts and failures of pytest's reports; one that was cut off counts for nothing."""
    counts: Counter[str] = Counter()
    failed: list[str] = []
    for report in reports:
        try:
            suite = ElementTree.parse(report).getroot().find("testsuite")
        except (OSError, ElementTree.ParseError):
            continue
        if suite is None:
            continue
        counts.update({name: int(suite.get(name, 0)) for name in ("tests", "failures", "errors", "skipped")})
        failed += [
            f"{case.get('classname')}::{case.get('name')}: {(bad.get('message') or '')[:200]}"
            for case in suite.iter("testcase")
            for bad in [*case.findall("failure"), *case.findall("error")]
        ]
    return dict(counts) | {"failed": failed[:60]}


def tail(path: Path, count: int = 30) -> list[str]:
    """The last lines of a log."""
    return path.read_text(errors="replace").splitlines()[-count:] if path.exists() else []
