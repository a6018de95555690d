"""The experiment of images: its digits, its models' sizes and what they see, and its command."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from experiments.images import digits, models
from experiments.shared.models import parameters
from torch.nn import functional as F

from helpers.experiments import loss_falls

SIZES = {
    "sequential": {"width": 16, "layers": 1},
    "permuted": {"width": 16, "layers": 1},
    "vit": {"width": 16, "layers": 2, "patch": 7},
    "grid": {"width": 16, "layers": 2, "dropout": 0.0},
}
NAMES = [(task, name) for task, names in models.MODELS.items() for name in names]


def test_a_short_run(toy: Callable[..., dict[str, Any]]) -> None:
    found = toy("images", "--seeds", "5")
    assert [(run["settings"]["task"], run["settings"]["model"]) for run in found["runs"]] == NAMES
    assert all(loss_falls(run) for run in found["runs"])
    for row, run in zip(found["models"], found["runs"], strict=True):
        assert row["mean"] == row["least"] == row["largest"] == run["result"]["error"]
        assert row["parameters"] == run["result"]["parameters"]
        s = row["settings"]
        assert f"{s['task']:<12}{s['model']:<24}{row['mean']:>7.2f}" in found["printed"]


def test_digits() -> None:
    images, classes, test_images, test_classes = digits.load()
    assert images.shape == (8000, 1, 28, 28)
    assert test_images.shape == (2000, 1, 28, 28)
    assert classes[:10].tolist() == [7, 2, 1, 0, 4, 1, 4, 9, 5, 9]  # as the split begins
    assert test_classes[-4:].tolist() == [3, 4, 5, 6]  # as it ends
    assert abs(images.mean()) < 0.05
    assert abs(images.std() - 1) < 0.05
    small, _, small_test, _ = digits.load(14, training=50, test=10)
    for some, of in ((small, images[:50]), (small_test, test_images[:10])):
        assert torch.allclose(some, of.view(-1, 1, 14, 2, 14, 2).mean((3, 5)), atol=1e-6)
    for side, of, message in ((9, 50, "28 x 28 pixels, of which 9 x 9"), (14, 8001, "not 8001 and 10")):
        with pytest.raises(ValueError, match=message):
            digits.load(side, of, 10)


@pytest.mark.parametrize(("task", "name"), NAMES)
def test_models_are_of_equal_size_and_see_every_pixel(task: str, name: str) -> None:
    torch.manual_seed(0)
    model = models.make(task, name, 14, **SIZES[task]).eval()
    largest = {"sequential": "hyena", "permuted": "hyena", "vit": "hyena over the grid", "grid": "hyena-iso"}[task]
    size, of = parameters(model), parameters(models.make(task, largest, 14, **SIZES[task]))
    if name in ("attention", "hyena along the row") and task == "vit":
        assert size < of
    else:
        assert size == pytest.approx(of, rel=0.05)
    images = torch.randn(2, 1, 14, 14, requires_grad=True)
    logits = model(images)
    assert logits.shape == (2, 10)
    F.cross_entropy(logits, torch.tensor([3, 4])).backward()
    assert images.grad is not None
    assert (images.grad != 0).all()


def test_rows_are_read_in_order() -> None:
    torch.manual_seed(0)
    model = models.make("permuted", "hyena", 7, **SIZES["permuted"])
    plain = models.PixelRow([block.mixer for block in model.blocks], 16, 49, d_inner=32)
    plain.load_state_dict(model.state_dict(), strict=False)
    images = torch.randn(3, 1, 7, 7)
    order = digits.permutation(49)
    assert not torch.equal(order, torch.arange(49))
    assert torch.equal(order.sort().values, torch.arange(49))
    assert torch.allclose(model(images), plain(images.flatten(2)[..., order].view(3, 1, 7, 7)), atol=1e-6)
    seen: list[torch.Tensor] = []
    model.blocks[-1].register_forward_hook(lambda _, __, y: seen.append(y))
    images.requires_grad_()
    model(images)
    seen[-1][:, 20].sum().backward()  # a causal model: what was read by then, and nothing else
    assert images.grad is not None
    touched = images.grad.flatten(1)[0][order].abs()
    assert touched[:21].min() > 1e3 * touched[21:].max()  # those are rounding


def test_what_is_not_there_is_named() -> None:
    with pytest.raises(ValueError, match="no model 'lstm' for 'vit'"):
        models.make("vit", "lstm", 14)
    with pytest.raises(ValueError, match=r"no choice of range\(1, 3\) has about 500 parameters; 2 has 22"):
        models.nearest(lambda n: torch.nn.Linear(10, n), range(1, 3), 500)
