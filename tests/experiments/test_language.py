"""The experiment of language models at a toy's size, and how its tables are read off its runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from experiments.language import work
from experiments.language.models import MODELS, WORDS, attention_layers, build
from experiments.language.tables import loss_at, table
from experiments.shared.models import parameters

from helpers.experiments import loss_falls
from hyena.mixers import Attention


def test_a_toy(toy: Callable[..., dict[str, Any]]) -> None:
    found = toy("language", "--seeds", "1")
    trained = [run for run in found["runs"] if run["settings"]["part"] == "train"]
    assert [run["settings"]["model"] for run in trained] == [*MODELS, "hyena", "attention"]
    assert all(loss_falls(run) for run in trained)
    assert {run["settings"]["part"] for run in found["runs"]} == {"train", "n-grams", "speed"}
    for text, bits in (("shakespeare", 1), ("wikitext-2", 2)):
        rows = found["tables"][text]["models"]
        part = found["printed"].split(f"\n{text} ", 1)[1]
        for model, row in rows.items():
            line = next(line for line in part.splitlines() if line.startswith(WORDS[model]))
            assert f"{row['parameters']:,}" in line
            assert f"{row['loss']['mean']:.4f}" in line
            assert row["loss"]["mean"] > bits  # a few steps learn little
        assert rows["hyena"]["loss"]["seeds"] == 1
        assert f"{found['tables'][text]['n_grams']['3']['loss']:.4f}" in found["printed"]


@pytest.mark.parametrize("name", MODELS)
def test_equal_parameters(name: str) -> None:
    sizes = {"width": 32, "layers": 4, "heads": 2}
    model, hyena = (build(each, 65, 64, **sizes, dropout=0.0) for each in (name, "hyena"))
    # An inner unit of the four MLPs is 4 x 65 numbers.
    assert abs(parameters(model) - parameters(hyena)) <= 130
    layers = {"attention": 4, "attention-rotary": 4, "hybrid-1": 1, "hybrid-2": 2}
    assert sum(isinstance(block.mixer, Attention) for block in model.blocks) == layers.get(name, 0)


def test_rows_in_parts_give_the_gradients_of_all_at_once() -> None:
    settings = {"length": 16, "width": 16, "layers": 2, "heads": 2, "dropout": 0.0, "rows": 6, "seed": 3}
    tokens = torch.randint(9, (100,), generator=torch.Generator().manual_seed(0))
    model = work.model_of(settings, 9, "hybrid-1")
    found = []
    for more in ({}, {"rows_at_once": 4}):
        loss = work._step_loss(model, tokens, settings | more, "cpu", 5)
        loss.backward()
        found.append((loss.detach(), [p.grad.clone() for p in model.parameters()]))
        model.zero_grad()
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-6)


def test_where_hybrids_have_attention() -> None:
    assert attention_layers(0, 4) == ()
    assert attention_layers(1, 4) == (1,)
    assert attention_layers(2, 4) == (1, 3)
    assert attention_layers(2, 12) == (1, 7)


def run(model: str, seed: int, flops: float, losses: list[float]) -> dict[str, Any]:
    history = [{"step": 10 * (i + 1), "loss": loss, "training_loss": loss} for i, loss in enumerate(losses)]
    settings = {"part": "train", "text": "t", "model": model, "seed": seed, "steps": 10 * len(losses)}
    result = {"loss": losses[-1] + 0.25, "bits_a_byte": 2.0, "parameters": 7, "flops": flops, "history": history}
    return {"settings": settings, "result": result}


def test_losses_between_evaluations() -> None:
    found = run("hyena", 1, 8.0, [4.0, 3.0, 2.0])
    assert loss_at(found, 1.0) == 2.25  # the whole test part's
    assert loss_at(found, 2 / 3) == 3.25
    assert loss_at(found, 0.5) == 3.75
    assert loss_at(found, 0.1) == 4.25  # before the first evaluation nothing is known


def test_equal_operations_and_equal_time() -> None:
    speed = {"settings": {"part": "speed", "text": "t"}, "result": {"seconds_a_step": {"hyena": 2.0, "h3": 4.0}}}
    counted = {"settings": {"part": "n-grams", "text": "t"}, "result": {"orders": {"1": {"loss": 9.0}}}}
    runs = [run("hyena", 1, 9.0, [4.0, 3.0, 2.0]), run("hyena", 2, 9.0, [4.0, 3.0, 1.0])]
    found = table([counted, speed, *runs, run("h3", 1, 6.0, [5.0, 4.0, 3.0])], "t")
    hyena, h3 = found["models"]["hyena"], found["models"]["h3"]
    assert hyena["loss"] == {"mean": 1.75, "least": 1.25, "largest": 2.25, "seeds": 2}
    assert hyena["loss_at_equal_flops"]["mean"] == 3.25  # two thirds of the steps
    assert h3["loss_at_equal_flops"]["mean"] == 3.25
    assert hyena["loss_at_equal_time"]["mean"] == 1.75
    assert h3["loss_at_equal_time"]["mean"] == 4.75  # half of the steps
    assert found["n_grams"] == {"1": {"loss": 9.0}}
