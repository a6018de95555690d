"""The sweep of settings, at a toy's size, and that its operator is the library's with the settings that it says."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("matplotlib")
pytest.importorskip("tqdm")

from experiments.defaults.jobs import JOBS, batches, held_out
from experiments.defaults.plot import draw
from experiments.defaults.variants import Variant, model

from hyena import HyenaOperator


def test_a_toy_run(toy: Callable[..., dict[str, Any]]) -> None:
    found = toy("defaults", "--seeds", "1", "2")
    assert len(found["runs"]) == 8
    for run in found["runs"]:
        if run["settings"]["job"] == "characters-64":
            history = run["result"]["history"]
            assert history[-1]["training_loss"] < history[0]["training_loss"]
    (row,) = (row for label, row in found["table"].items() if "freq=2.0" in label)
    scores = [run["result"]["score"] for run in found["runs"] if run["settings"]["freq"] == 2.0]
    assert row["characters-64"]["mean"] == pytest.approx((scores[1] + scores[3]) / 2)


def test_a_variant_says_every_setting() -> None:
    """Each changes what it names, whatever the library's defaults are."""
    torch.manual_seed(0)
    changed = {"freq": 2.0, "emb_dim": 5, "width": 16, "inner_layers": 1, "shift": 0.5, "order": 3, "mlp": "geglu"}
    block = model(Variant(**changed), 7, 40, width=8, layers=1).blocks[0]
    assert hasattr(block.mlp, "gate")
    assert not hasattr(model(Variant(), 7, 40, width=8, layers=1).blocks[0].mlp, "gate")
    operator = block.mixer
    assert isinstance(operator, HyenaOperator)
    filter: Any = operator.conv.filter
    assert operator.order == 3
    assert filter.window.shift == 0.5
    assert len(filter.ffn.hidden) == 2
    assert filter.ffn.hidden[0].weight.shape == (16, 5)
    assert (filter.ffn.freq == 2).all()
    fast = model(Variant(slow=1.0, fast=0.1), 7, 40, width=8, layers=1).blocks[0].mixer
    ends = fast.conv.filter.window.deltas.abs()[[0, -1]]
    torch.testing.assert_close(torch.exp(-ends * torch.tensor([1.0, 0.1])), torch.full((2,), 0.01))


def test_a_line_of_the_plot_is_a_variant(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """In every panel, also of a job that some variants were not tried on."""
    drawn: list[Any] = []
    monkeypatch.setattr("experiments.shared.plots.save", lambda figure, path: drawn.extend(figure.axes))
    score = {"mean": 1.0, "least": 0.9, "largest": 1.1}
    table = {"a": {"x": score}, "b": {"x": score, "y": score}, "c": {"x": score}, "d": {"x": score, "z": score}}
    draw({"table": table}, tmp_path / "plot.png")
    assert [panel.get_title() for panel in drawn] == ["x", "y", "z"]
    assert len({panel.get_ylim() for panel in drawn}) == 1
    assert [text.get_text() for text in drawn[0].get_yticklabels()] == ["d", "c", "b", "a"]
    assert [dots.get_ydata()[0] for dots in drawn[1].lines if dots.get_marker() == "o"] == [2]


@pytest.mark.parametrize(("norm", "skip"), [(1.0, 1.0), (3.0, 0.25)])
def test_the_start(norm: float, skip: float) -> None:
    torch.manual_seed(1)
    operator = model(Variant(norm=norm, skip=skip), 7, 200, width=64, layers=1).blocks[0].mixer
    torch.testing.assert_close(operator.conv.filter(200).norm(dim=1).mean().item(), norm, rtol=0.01, atol=0)
    torch.testing.assert_close(operator.conv.bias.std().item(), skip, rtol=0.35, atol=0)


def test_the_released_start_is_larger_in_longer_rows() -> None:
    torch.manual_seed(1)
    norms = [
        model(Variant(norm=None), 7, length, width=16, layers=1).blocks[0].mixer.conv.filter(length).norm(dim=1).mean()
        for length in (64, 1024)
    ]
    assert norms[1] > 3 * norms[0]


def test_batches_are_a_function_of_the_step() -> None:
    for job in (JOBS["recall-128"], JOBS["characters-64"], JOBS["dna-1024"]):
        tokens, targets = batches(job, 3)(17)
        again, _ = batches(job, 3)(17)
        assert tokens.shape == targets.shape == (job.batch, job.length)
        assert (tokens == again).all()
        assert (tokens[:, 1:] == targets[:, :-1]).all()
        assert (tokens != batches(job, 4)(17)[0]).any()
        assert targets.max() < job.vocabulary


def test_an_epoch_of_recall_has_every_example_once() -> None:
    job = JOBS["recall-128"]
    batch = batches(job, 0)
    rows = torch.cat([batch(step)[0] for step in range(63, 126)])
    assert rows.shape == (2000, 128)
    assert len({tuple(row.tolist()) for row in rows}) == 2000


def test_a_score_is_that_of_held_out_data() -> None:
    job = JOBS["characters-64"]
    torch.manual_seed(0)
    net = model(Variant(), job.vocabulary, job.length, width=8, layers=1)
    with torch.no_grad():
        score = held_out(job, 0)(net)
    assert abs(score - torch.tensor(65.0).log().item()) < 0.3
