"""The runtime by length, at a toy's size; the records of GPUs; who wins."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("matplotlib")
pytest.importorskip("tqdm")

from experiments.runtime import memory
from experiments.runtime import report as runtime
from experiments.shared import runs

RECORDS = Path(__file__).parents[2] / "benchmarks" / "results"


def of(mean: float, apart: float = 0.0) -> dict[str, Any]:
    return runs.spread([mean - apart, mean, mean + apart])


def test_a_short_run(toy: Callable[..., dict[str, Any]]) -> None:
    found = toy("runtime", "--seeds", "1", "2")
    times = [run for run in found["runs"] if run["settings"]["what"] == "time"]
    assert len(times) == 2 * 2 * 2
    here, *recorded = found["machines"]
    for mode in ("forward", "training"):
        for layer in ("hyena", "attention"):
            for length in (64, 128):
                row = here["seconds"][mode][layer][str(length)]
                each = [
                    run["result"]["seconds"][layer]
                    for run in times
                    if run["settings"]["length"] == length and run["settings"]["training"] == (mode == "training")
                ]
                assert (row["least"], row["largest"], row["seeds"]) == (min(each), max(each), 2)
                assert f"{row['mean'] * 1e3:.3g} (" in found["printed"]
    assert all(count is None or count > 0 for count in here["bytes"]["forward"]["attention"].values())
    assert "NVIDIA H200" in [machine["name"] for machine in recorded]


def test_records_are_read_as_they_stand() -> None:
    name = "gpu-nvidia-h200.json"
    (machine,) = (machine for machine in runtime.recorded(RECORDS) if machine["record"] == name)
    rows = {row["what"]: row for row in json.loads((RECORDS / name).read_text())["sections"]["attention"]["rows"]}
    for mode, what in (("forward", "forward"), ("training", "training step")):
        for layer in ("hyena", "flash", "default"):
            recorded = rows[f"{what} bf16 D=768 L=4096"][f"{layer} ms"]
            assert machine["seconds"][mode][layer][4096]["mean"] == recorded / 1e3
    assert machine["width"] == 768


def test_crossover() -> None:
    hyena = {n: of(1.0) for n in (1, 2, 4, 8)}
    assert runtime.crossover(hyena, {1: of(2.0), 2: of(0.5), 4: of(1.5), 8: of(9.0)}) == 4
    assert runtime.crossover(hyena, {1: of(2.0), 2: of(2.0), 4: of(1.5), 8: of(0.9)}) is None
    assert runtime.crossover(hyena, {1: of(2.0), 2: of(2.0)}) == 1
    assert runtime.crossover(hyena, {1: of(2.0), 2: of(1.1, 0.2), 4: of(2.0)}) == 4


def test_who_wins_is_said_where_no_seed_says_otherwise() -> None:
    assert runtime.wins(of(1.0, 0.1), of(2.0, 0.1)) == "Hyena"
    assert runtime.wins(of(2.0, 0.1), of(1.0, 0.1)) == "attention"
    assert runtime.wins(of(1.0, 0.5), of(1.2, 0.5)) == "even"
    assert runtime.wins(runs.spread([1.0]), runs.spread([1.02])) == "even"
    assert runtime.wins(runs.spread([1.0]), runs.spread([1.05])) == "Hyena"


def test_peak_memory_of_attention() -> None:
    """Queries, keys and values, their mixture and the output are there at the peak, and no matrix of all pairs."""
    (found,) = memory.apart(name="attention", training=False, width=128, tokens=4096, lengths=[4096])
    if found is None:
        pytest.skip("no peak memory on this system")
    row = 4096 * 128 * 4
    assert 4 * row <= found <= 12 * row
    assert found < 4096 * 4096 * 4
