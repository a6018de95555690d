"""Hyena-ISO: the paper's number of parameters, its equations, and what a convolution over an image must do."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from helpers.definitions import assert_close
from hyena.filters import S4ND, HyenaFilter, HyenaFilterND, SeparableFilter
from hyena.models import HyenaISO, HyenaISOConfig

SMALL = {"image_size": (5, 6), "num_classes": 4, "d_model": 6, "num_layers": 2, "filter_width": 8, "dropout": 0.0}


def build(filter=None, **config: object) -> HyenaISO:
    return HyenaISO(HyenaISOConfig(**SMALL | config), filter, dtype=torch.float64).eval()


def images(batch: int = 2, height: int = 5, width: int = 6) -> Tensor:
    return torch.randn(batch, 3, height, width, dtype=torch.float64)


def test_it_has_the_papers_number_of_parameters() -> None:
    model = HyenaISO(HyenaISOConfig(), device="meta")
    count = sum(p.numel() for p in model.parameters())
    assert round(count, -3) == 202_000
    assert [(len(model.blocks), block.norm.normalized_shape) for block in model.blocks] == [(4, (128,))] * 4
    assert sum(p.numel() for p in HyenaISO(HyenaISOConfig(), S4ND, device="meta").parameters()) > count


def definition(model: HyenaISO, x: Tensor) -> Tensor:
    """Pixel by pixel."""
    h = torch.einsum("bchw,dc->bhwd", x, model.stem.weight) + model.stem.bias
    height, width = h.shape[1:3]
    for block in model.blocks:
        u = F.layer_norm(h, h.shape[-1:], block.norm.weight, block.norm.bias)
        taps = block.conv.filter((height, width))[0]
        y = torch.zeros_like(u)
        for r in range(height):
            for s in range(width):
                for a in range(height):
                    for b in range(width):
                        y[:, r, s] += taps[r - a + height - 1, s - b + width - 1] * u[:, a, b]
        y = y + block.conv.bias[0] * u
        left, right = (F.gelu(y) @ block.out_proj.weight.T + block.out_proj.bias).chunk(2, dim=-1)
        h = h + left * torch.sigmoid(right)
    h = F.layer_norm(h, h.shape[-1:], model.norm.weight, model.norm.bias)
    return h.mean((1, 2)) @ model.head.weight.T + model.head.bias


@pytest.mark.parametrize("size", [(5, 6), (3, 4), (1, 1)])
@pytest.mark.parametrize("filter", [None, HyenaFilterND])
def test_is_its_equations(filter, size: tuple[int, int]) -> None:
    model, x = build(filter), images(2, *size)
    got, want = model(x), definition(model, x)
    assert_close(got, want)
    names, weights = zip(*model.named_parameters(), strict=True)
    probe = torch.randn_like(got)
    grads = [torch.autograd.grad((y * probe).sum(), weights, materialize_grads=True) for y in (got, want)]
    for name, a, b in zip(names, *grads, strict=True):
        assert_close(a, b, name)


def test_a_shifted_image_on_a_torus_is_the_same() -> None:
    model, x = build(boundary="circular"), images()
    for shift in ((1, 0), (0, 1), (3, 4)):
        moved = x.roll(shift, (2, 3))
        torch.testing.assert_close(model(moved), model(x))
        torch.testing.assert_close(model.hidden_states(moved), model.hidden_states(x).roll(shift, (1, 2)))


def test_every_pixel_counts_and_everything_has_a_gradient() -> None:
    model, x = build().train(), images().requires_grad_()
    model(x).square().sum().backward()
    assert (x.grad.abs().amax((0, 1)) > 0).all()
    for name, p in model.named_parameters():
        assert p.grad is not None, name
        assert p.grad.isfinite().all(), name


def field(size: int) -> Tensor:
    """A smooth picture of ``size`` pixels a side."""
    at = (torch.arange(size, dtype=torch.float64) + 0.5) / size
    return torch.stack([torch.sin(3 * at)[:, None] * torch.cos(2 * at + c) for c in range(3)])[None]


def test_another_resolution_of_a_picture_is_the_same() -> None:
    """To the width of a pixel: the finer the picture, the closer."""
    smooth = partial(SeparableFilter, filter=partial(HyenaFilter, emb_dim=3, freq=1.0))
    apart = []
    for size in (24, 96):
        torch.manual_seed(0)
        model = build(smooth, image_size=size)
        want = model(field(size))
        with pytest.raises(ValueError, match=rf"up to {size} x {size} pixels .*got \(1, 3, {2 * size}, {2 * size}\)"):
            model(field(2 * size))
        model.extend(2 * size)
        assert model.config.image_size == (2 * size, 2 * size)
        got = model(field(2 * size))
        apart.append(((got - want).abs().max() / want.abs().max()).item())
        loaded = HyenaISO(model.config, smooth, dtype=torch.float64).eval()
        loaded.load_state_dict(model.state_dict())
        torch.testing.assert_close(loaded(field(2 * size)), got)
    assert apart[1] < 0.1
    assert apart[1] < apart[0] / 3


def test_initialised_again() -> None:
    model = HyenaISO(HyenaISOConfig(**SMALL), device="meta").to_empty(device="cpu")
    with torch.no_grad():
        for t in model.state_dict().values():
            t.fill_(torch.nan)
    model.reset_parameters()
    assert all(t.isfinite().all() for t in model.state_dict().values())
    assert model(images().float()).isfinite().all()


def test_bad_values_name_the_numbers() -> None:
    for values, message in [
        ({"image_size": (5, 0)}, r"got \(5, 0\)"),
        ({"num_layers": 0}, "num_layers must be at least 1, got 0"),
        ({"dropout": -0.1}, r"dropout must be a number in \[0, 1\), got -0.1"),
    ]:
        with pytest.raises(ValueError, match=message):
            HyenaISOConfig(**SMALL | values)
    with pytest.raises(ValueError, match=r"images must be \(B, 3, H, W\).*got \(2, 5, 6, 3\)"):
        build()(torch.zeros(2, 5, 6, 3, dtype=torch.float64))
    config = HyenaISOConfig(**SMALL)
    assert HyenaISOConfig.from_dict(config.to_dict()) == config
