"""The experiments of recall and of the other synthetic tasks, at a toy's size: they run, and table and JSON agree."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from experiments.recall import grids as recall_grids
from experiments.shared.models import FILTERS
from experiments.shared.runs import name_of
from experiments.synthetics import grids
from experiments.synthetics.models import Regressor
from experiments.synthetics.report import guess

from helpers.experiments import loss_falls

Toy = Callable[..., dict[str, Any]]


def test_recall(toy: Toy) -> None:
    found = toy("recall", "--seeds", "1", "2", "--workers", "2")  # processes that import what __main__ defines
    assert len(found["runs"]) == 4
    assert all(map(loss_falls, found["runs"]))
    assert [row["settings"]["model"] for row in found["table"]] == ["hyena", "hyena/conv1d"]
    for row in found["table"]:
        runs = [r["result"] for r in found["runs"] if r["settings"]["model"] == row["settings"]["model"]]
        shares = [run["accuracy"] for run in runs]
        assert row["accuracy"] == {
            "mean": pytest.approx(sum(shares) / 2), "least": min(shares), "largest": max(shares), "seeds": 2
        }  # fmt: skip
        printed = next(
            line for line in found["printed"].splitlines() if line.startswith(f"{row['settings']['model']} ")
        )
        assert f"{row['accuracy']['mean']:.1%} ({min(shares):.1%}, {max(shares):.1%})" in printed


def test_synthetics(toy: Toy) -> None:
    found = toy("synthetics", "--seeds", "1")
    assert all(map(loss_falls, found["runs"]))
    assert len(found["runs"]) == len(found["table"]) == len(grids.toy_runs())
    lines = [line for line in found["printed"].splitlines() if line.endswith("1 seeds")]
    for run, row, line in zip(found["runs"], found["table"], lines, strict=True):
        assert run["settings"] == {**row["settings"], "seed": 1}
        assert run["result"]["score"] == row["score"]["mean"]
        assert line.split()[0] == row["settings"]["task"].split()[0]
        assert f" {row['score']['mean']:.3f} (" in line
        assert f" {guess(row['settings']):.3f} " in line


@pytest.mark.parametrize("size", ["toy", "default", "full"])
def test_grids(size: str) -> None:
    for grid in (recall_grids.grid, grids.grid):
        runs = grid(size, [1, 2])
        assert len({name_of(settings) for settings in runs}) == len(runs)
        assert [r["seed"] for r in runs] == [1] * (len(runs) // 2) + [2] * (len(runs) // 2)


def test_full_recall_is_the_published_setup() -> None:
    runs = recall_grids.grid("full", [1])
    setup = {"width": 64, "layers": 2, "examples": 2000, "batch": 32, "epochs": 200, "warmup": 10, "lr": 5e-4}
    assert all(run[name] == value for run in runs for name, value in setup.items())
    longest = {run["model"] for run in runs if run["length"] == 131072}
    assert longest == {"hyena", "h3", "gss", "aft-conv", *(f"hyena/{name}" for name in FILTERS)}


@pytest.mark.parametrize("name", ["hyena", "attention"])
def test_regressor_is_causal(name: str) -> None:
    torch.manual_seed(0)
    net = Regressor(name, 3, 9, width=8, layers=2, d_inner=8).double().eval()
    vectors = torch.randn(2, 9, 3, dtype=torch.float64, requires_grad=True)
    out = net(vectors)
    assert out.shape == (2, 9)
    out[:, 4].sum().backward()
    reach = vectors.grad.abs().sum((0, 2))
    assert reach[5:].max() < 1e-13  # rounding of transforms
    assert reach[:5].min() > 1e-6
