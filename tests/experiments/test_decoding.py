"""The experiment of decoding at a toy's size, and its tables."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from experiments.decoding import tables, work
from experiments.language.grid import grid
from experiments.shared.runs import Place


def test_a_toy(toy: Callable[..., dict[str, Any]]) -> None:
    found = toy("decoding", "--seeds", "1")
    exact, *rows = found["tables"]["distilled"]
    assert [row["modes"] for row in rows] == [1, 4]
    # More modes come closer, in filters and in loss.
    assert rows[1]["mean_error"]["mean"] < rows[0]["mean_error"]["mean"]
    assert abs(rows[1]["over_exact"]["mean"]) < abs(rows[0]["over_exact"]["mean"])
    for row in rows:
        assert row["over_exact"]["mean"] == pytest.approx(row["loss"]["mean"] - exact["loss"]["mean"])
        assert f"{row['loss']['mean']:.4f}" in found["printed"]
    assert [row["context"] for row in found["tables"]["speeds"]] == [16, 32]
    for row in found["tables"]["speeds"]:
        ratio = row["times_as_fast"]["exact"]["attention"]
        assert ratio == pytest.approx(row["milliseconds"]["attention"] / row["milliseconds"]["exact"])
        assert f"{ratio:.2f} /" in found["printed"]


def test_the_model_is_that_of_the_language_experiment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = next(s for s in grid("toy", [5]) if s.get("model") == "hyena") | {"steps": 3}
    monkeypatch.setattr(work, "LANGUAGE", tmp_path / "language")
    place = Place("cpu", tmp_path / "own" / "run.pt", "a run")
    place.state.parent.mkdir()
    first = work.trained(settings, "toy", place)  # there is none: it is trained
    (kept,) = place.state.parent.glob("*.weights.pt")
    weights = torch.load(kept, weights_only=True)
    assert all(torch.equal(weights[name], value) for name, value in first.state_dict().items())
    folder = tmp_path / "language" / "toy"
    folder.mkdir(parents=True)
    weights["norm.bias"] += 1.0
    torch.save(weights, folder / kept.name)
    assert torch.equal(work.trained(settings, "toy", place).norm.bias, first.norm.bias + 1.0)


def test_rows_over_seeds() -> None:
    def run(loss: float, small: float) -> dict[str, Any]:
        row = {"modes": 2, "mean_error": 0.1, "largest_error": 0.5, "loss": small}
        return {"settings": {"part": "distill"}, "result": {"loss": loss, "distilled": [row]}}

    exact, row = tables.distilled([run(1.0, 1.5), run(3.0, 3.25)])
    assert exact["loss"]["mean"] == 2.0
    assert row["over_exact"] == {"mean": 0.375, "least": 0.25, "largest": 0.5, "seeds": 2}
    assert tables.distilled([]) == tables.speeds([]) == tables.lines({"distilled": [], "speeds": []}) == []
