"""The rooms of ``csrc``: includes point one way, and every C++ file keeps to 120 columns."""

from __future__ import annotations

import re
from pathlib import Path

CSRC = Path(__file__).resolve().parents[2] / "src" / "hyena" / "csrc"
SOURCES = sorted(p for p in CSRC.rglob("*") if p.suffix in (".h", ".cpp", ".cu", ".cuh"))
# Each may include itself and what follows.
ROOMS = {
    "cpu": ["binding", "kernels", "fft", "simd"],
    "cuda": ["binding", "kernels", "fft", "device"],
}


def room(path: Path) -> tuple[str, ...]:
    return path.relative_to(CSRC).parts[:-1]


def test_includes_point_down() -> None:
    seen = set()
    for source in SOURCES:
        for name in re.findall(r'#include "([^"]+)"', source.read_text()):
            target = (source.parent / name).resolve()
            assert target.exists(), f"{source.name} includes {name}, which is not there"
            here, there = room(source), room(target)
            seen.add((here, there))
            if not there:  # what both bindings share
                assert not here or here[1] == "binding", f"{source} includes {name}"
                continue
            assert here, f"{source} is shared, and includes {name}"
            assert here[0] == there[0], f"{source} includes {name}, of the other device"
            order = ROOMS[here[0]]
            assert order.index(here[1]) <= order.index(there[1]), f"{source} includes {name}, which points up"
    assert len(seen) >= 12


def test_only_bindings_see_torch() -> None:
    for source in SOURCES:
        if "#include <torch/" in source.read_text():
            assert not room(source) or room(source)[1] == "binding", source


def test_lines_keep_to_120_columns() -> None:
    for source in SOURCES:
        long = [i for i, line in enumerate(source.read_text().splitlines(), 1) if len(line) > 120]
        assert not long, f"{source}: lines {long}"
