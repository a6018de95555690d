"""What hyena.convert refuses, by name and with what would do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import hyena
from helpers.conversion import FILTER, QUIET, L, language_model, pairs, same_weights, weights
from hyena.conversion.batches import Batches, checksum
from hyena.conversion.progress import Progress
from hyena.mixers import H3
from hyena.models import CausalLM, CausalLMConfig

STEPS = {"layer_steps": 1, "logit_steps": 1, "start": "random"}


def refused(
    words: str, batches: Any = None, model: nn.Module | None = None, error: type = ValueError, **settings: Any
) -> None:
    """The error has these words, and the model is as it was."""
    model = language_model() if model is None else model
    before = weights(model)
    with pytest.raises(error, match=words):
        hyena.convert(model, pairs(4) if batches is None else batches, **STEPS | FILTER | QUIET | settings)
    assert same_weights(weights(model), before)


def test_batches() -> None:
    refused(r"batches is empty: 4 are needed \(2 held out to evaluate, 1 to teach layers and 1", [])
    refused("batches is empty: 4 are needed", iter([]))
    refused("batches gave 3 and 4 are needed", pairs(3))
    refused("batches gave 3 and 4 are needed.*fewer steps", iter(pairs(3)))
    refused("one batch at most", pairs(1)[0][0], error=TypeError)
    refused("cannot be iterated", 5, error=TypeError)
    refused("how many batches there are is not known.*generator", (b for b in pairs(4)), layer_steps=None)
    refused("evaluate has no batches", evaluate=0)
    refused("evaluate has no batches", evaluate=[])


def test_steps_that_are_left_out() -> None:
    """All batches are used then, and they may be too few: what there is, what is held out, and what would do."""
    both = {"layer_steps": None, "logit_steps": None}
    for count in range(5):
        less = rf", or evaluate={count - 1} or less$" if count > 1 else "$"
        words = rf"gave {count} and 5 are needed \(evaluate=4 held out, at least 1 to train with\): pass more{less}"
        refused(words, pairs(count), evaluate=4, **both)
    refused("gave 0 and 1 are needed .at least 1 to train with.: pass more$", [], evaluate=pairs(1), **both)
    words = r"gave 4 and 7 are needed \(evaluate=2 held out, logit_steps=5\): pass more$"
    refused(words, pairs(4), layer_steps=None, logit_steps=5)
    refused("evaluate=2 held out, layer_steps=3.: pass more, or evaluate=1 or less$", layer_steps=3, logit_steps=None)
    refused("logit_steps must be an integer, got '3'", layer_steps=None, logit_steps="3", error=TypeError)
    refused("logit_steps must be at least 0, got -3", layer_steps=None, logit_steps=-3)
    refused("one batch at most", pairs(1)[0][0], error=TypeError, **both)
    hyena.convert(language_model(), pairs(3), start="random", **both, **FILTER, **QUIET)


def test_rows_that_are_too_long() -> None:
    refused(f"batch 0 has rows of {L + 3} positions.*l_max={L}.*pass l_max={L + 3}", pairs(4, length=L + 3))
    floats = [torch.randn(2, L + 3, 16) for _ in range(4)]
    layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True)
    model = nn.Sequential(nn.TransformerEncoder(layer, 1), nn.Linear(16, 5)).eval()
    refused(f"a row of {L + 3} positions is longer than.*l_max={L}", floats, model, l_max=L, label_weight=0.0)


def test_nothing_to_convert() -> None:
    refused(
        "found nothing to replace in CausalLM, which has 2 HyenaOperator", model=CausalLM(CausalLMConfig(20, L, 16, 2))
    )
    refused("found nothing to replace in Linear", model=nn.Linear(3, 3))


def test_layers_that_stay() -> None:
    refused(r"keep=\[3\] has 3, and the model's layers are 0 to 2", keep=[3])
    refused(r"keep=\[-1\] has -1", keep=[-1])
    refused(r"keep=\[1, 1\] has a layer twice", keep=[1, 1])
    refused(r"keep=\[0\] and keep_worst=2 keep 3 of 3 layers: nothing would be", keep=[0], keep_worst=2)
    refused("keep must hold indices of layers, got 'blocks.0'", keep=["blocks.0"], error=TypeError)
    refused("keep must be indices of layers, got 1", keep=1, error=TypeError)
    refused("keep_worst must be at least 0, got -1", keep_worst=-1)


def test_labels() -> None:
    tokens = [x for x, _ in pairs(4)]
    refused(r"label_weight=0.5 mixes in the loss of true labels.*pass label_weight=0", tokens)
    hyena.convert(language_model(), tokens, label_weight=0.0, **STEPS | FILTER | QUIET)
    unlabelled = [*pairs(3), pairs(1)[0][0]]
    refused("label_weight=0.5 mixes in", unlabelled)
    refused(r"labels of shape \(4, 3\) do not fit logits of shape \(4, 12, 20\)", [(x, y[:, :3]) for x, y in pairs(4)])


def test_batches_of_another_kind() -> None:
    refused("a batch is a list of 3 parts.*forward=", [[x, y, y] for x, y in pairs(4)])
    refused("a batch is a str", ["a", "b", "c", "d"])

    class Hidden(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = language_model()

        def forward(self, x):
            return {"last_hidden_state": self.inner(x)}

    refused("without logits.*head.*forward=", [x for x, _ in pairs(4)], Hidden())
    mask = torch.ones(4, L - 1, dtype=torch.bool)

    class Masked(Hidden):
        def forward(self, x, attention_mask):
            return self.inner(x)

    batches = [{"x": x, "attention_mask": mask} for x, _ in pairs(4)]
    refused(r"attention_mask of shape \(4, 11\) does not say which.*\(4, 12, 20\)", batches, Masked(), label_weight=0.0)


@pytest.mark.parametrize(
    ("settings", "words", "error"),
    [
        ({"layer_steps": -1}, "layer_steps must be at least 0, got -1", ValueError),
        ({"layer_steps": 1.5}, "layer_steps must be an integer, got 1.5", TypeError),
        ({"layer_steps": 0, "logit_steps": 0}, "nothing would be trained", ValueError),
        ({"start_batches": 0}, "start_batches must be at least 1", ValueError),
        ({"save_every": 0}, "save_every must be at least 1, got 0", ValueError),
        ({"lr": -1.0}, "lr must be finite and not negative, got -1", ValueError),
        ({"lr": "fast"}, "lr must be a number, got 'fast'", TypeError),
        ({"temperature": 0.0}, "temperature must be positive", ValueError),
        ({"label_weight": 1.5}, "label_weight must be 0 .* to 1 .*got 1.5", ValueError),
        ({"start": "toeplitz"}, "start must be None or one of 'attention', 'filters', 'random'", ValueError),
        ({"objective": "l1"}, "objective must be one of 'kl', 'mse', got 'l1'", ValueError),
        ({"no_such_option": 1}, "no_such_option", TypeError),
    ],
)
def test_settings(settings: dict[str, Any], words: str, error: type) -> None:
    refused(words, error=error, **settings)


def test_a_start_that_is_not_possible() -> None:
    with pytest.raises(
        ValueError, match=r"start='attention' is not possible for blocks.0.mixer: a H3 is no HyenaOperator"
    ):
        hyena.convert(language_model(), pairs(4), layer_steps=1, logit_steps=1, start="attention", mixer=H3, **QUIET)


def test_a_loss_that_is_not_finite() -> None:
    batches = pairs(4)
    model = language_model()

    def forward(model: nn.Module, batch: Any) -> Any:
        logits = model(batch[0])
        return logits, logits.sum() * (torch.nan if torch.is_grad_enabled() else 1.0)

    refused("step 0 of the stage 'logits' gave nan.*logit_lr", batches, model, error=ArithmeticError, forward=forward)


def test_checksums_see_values_shapes_and_dtypes() -> None:
    x = torch.arange(6)
    same = checksum({"a": x, "b": [x]})
    assert same == checksum({"a": x.clone(), "b": (x,)})
    others = [x.flip(0), x.view(2, 3), x.int(), x[:5], x.bfloat16()]
    assert len({checksum(t) for t in (x, *others)}) == 6


def test_peeked_batches_still_come() -> None:
    batches = Batches(iter(pairs(4)), 3, "", torch.device("cpu"), None)
    seen = batches.peek(2)
    assert batches.taken == 0
    assert torch.equal(batches.next()[0], seen[0][0])
    assert len(batches.peek(5)) == 2  # as many as are needed
    assert batches.taken == 1


def test_progress(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib

    found: Callable = importlib.import_module

    def missing(name: str) -> Any:
        if name == "tqdm":
            raise ImportError(name)
        return found(name)

    monkeypatch.setattr(importlib, "import_module", missing)
    with Progress("stage", 4, 2, True) as bar:
        bar.step("error 1")
        bar.step("error 0.5")
    assert capsys.readouterr().err.splitlines()[-1] == "stage: step 4 of 4, error 0.5"
    monkeypatch.undo()
    pytest.importorskip("tqdm")
    with Progress("stage", 4, 2, True) as bar:
        bar.step("error 1")
    assert "3/4" in capsys.readouterr().err
    with Progress("stage", 4, 2, False) as bar:
        bar.step("error 1")
    assert capsys.readouterr().err == ""
