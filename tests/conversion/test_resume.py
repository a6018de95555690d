"""A conversion that is killed goes on from its folder to the same bits."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import hyena
from helpers.conversion import FILTER, QUIET, L, endless_pairs, language_model, pairs, same_weights, weights
from hyena.conversion import ConversionReport
from hyena.conversion.state import FILE
from hyena.mixers import Attention

STEPS = {"layer_steps": 5, "logit_steps": 6, "save_every": 2, "keep_worst": 1, "start": "filters"}


class Killed(BaseException):
    """What nothing catches."""


def until(batches: Iterable[Any], count: int) -> Iterator[Any]:
    """Batches, until one too many is asked for."""
    for i, batch in enumerate(batches):
        if i == count:
            raise Killed
        yield batch


def model() -> nn.Module:
    """With dropout in the second stage, so that random numbers matter."""
    found = language_model()
    for block in found.blocks:
        block.dropout.p = 0.2
    return found.train()


def convert(
    batches: Iterable[Any], folder: Path | None, seed: int, **settings: Any
) -> tuple[nn.Module, ConversionReport]:
    torch.manual_seed(seed)
    converted = model()
    torch.manual_seed(seed)
    return converted, hyena.convert(converted, batches, checkpoint=folder, **STEPS | FILTER | QUIET | settings)


def without_times(report: ConversionReport) -> dict[str, Any]:
    return {name: value for name, value in report.to_dict().items() if name != "seconds"}


@pytest.fixture(scope="module")
def whole() -> tuple[dict, ConversionReport]:
    """The conversion without a stop and without a folder."""
    converted, report = convert(endless_pairs(), None, seed=0)
    return weights(converted), report


@pytest.mark.parametrize("stops", [[3], [5], [8], [7, 9, 12]], ids=str)
def test_goes_on_to_the_same_bits(stops: list[int], whole: tuple[dict, ConversionReport], tmp_path: Path) -> None:
    """Killed in the first stage before a save, after it, in the second, and several times."""
    for i, stop in enumerate(stops):
        with pytest.raises(Killed):
            convert(until(endless_pairs(), stop), tmp_path, seed=0 if i == 0 else 100 + i)
    converted, report = convert(endless_pairs(), tmp_path, seed=99)
    assert same_weights(weights(converted), whole[0])
    assert without_times(report) == without_times(whole[1])
    assert report.steps == {"layers": 5, "logits": 6}
    assert sorted(path.name for path in tmp_path.iterdir()) == [FILE, "report.json"]


def test_one_that_is_done_is_only_loaded(whole: tuple[dict, ConversionReport], tmp_path: Path) -> None:
    convert(endless_pairs(), tmp_path, seed=0)
    converted, report = convert(pairs(13), tmp_path, seed=5)
    assert same_weights(weights(converted), whole[0])
    assert without_times(report) == without_times(whole[1])
    assert [type(b.mixer) is Attention for b in converted.blocks].count(True) == 1


@pytest.mark.parametrize("stop", [2, 5, 10])
def test_after_an_error_the_model_is_as_it_was(stop: int) -> None:
    attention = model()
    before = weights(attention)
    x = pairs(1)[0][0]
    expected = attention.eval()(x)
    attention.train()
    with pytest.raises(Killed):
        hyena.convert(attention, until(endless_pairs(), stop), **STEPS | FILTER | QUIET)
    assert same_weights(weights(attention), before)
    assert torch.equal(attention.eval()(x), expected)
    assert all(p.requires_grad for p in attention.parameters())
    hooks = [part._forward_hooks or part._forward_pre_hooks for part in attention.modules()]
    assert not any(hooks)


def test_after_an_error_transformers_models_are_as_they_were() -> None:
    """Their padding hook comes with the replacement, and would spoil the mask of attention."""
    pytest.importorskip("transformers")
    from helpers.transformers_models import KINDS, VOCAB

    gpt2 = KINDS["gpt2"].make().float()
    before = weights(gpt2)
    batches = [torch.randint(VOCAB, (2, L)) for _ in range(8)]
    expected = gpt2(batches[0], attention_mask=torch.ones(2, L)).logits
    with pytest.raises(Killed):
        hyena.convert(gpt2, until(batches, 7), layer_steps=2, logit_steps=4, label_weight=0.0, **FILTER, **QUIET)
    assert same_weights(weights(gpt2), before)
    assert torch.equal(gpt2(batches[0], attention_mask=torch.ones(2, L)).logits, expected)
    assert not any(part._forward_pre_hooks for part in gpt2.modules())


def stopped(folder: Path) -> None:
    with pytest.raises(Killed):
        convert(until(endless_pairs(), 6), folder, seed=0)


def test_other_settings_or_models_are_refused(tmp_path: Path) -> None:
    stopped(tmp_path)
    with pytest.raises(ValueError, match=r"logit_steps 6 \(now 7\).*another checkpoint folder"):
        convert(endless_pairs(), tmp_path, seed=0, logit_steps=7)
    with pytest.raises(ValueError, match="replacement"):
        convert(endless_pairs(), tmp_path, seed=0, order=3)
    other = language_model(seed=1)
    with pytest.raises(ValueError, match=r"model [0-9a-f]{64}"):
        hyena.convert(other, endless_pairs(), checkpoint=tmp_path, **STEPS | FILTER | QUIET)


def test_other_batches_are_refused(tmp_path: Path) -> None:
    stopped(tmp_path)
    with pytest.raises(ValueError, match="batch 5 is not the one"):
        convert(endless_pairs(seed=1), tmp_path, seed=0)


def test_a_damaged_state_is_refused(tmp_path: Path) -> None:
    (tmp_path / FILE).write_bytes(b"nothing")
    with pytest.raises(ValueError, match="not the state of a conversion"):
        convert(endless_pairs(), tmp_path, seed=0)
