"""Implicit filters over grids, and products of filters, against what they are by definition."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from hyena.filters import (
    DSS,
    S4D,
    S4ND,
    ExplicitFilter,
    ExponentialWindowND,
    GaussianWindowND,
    HyenaFilter,
    HyenaFilterND,
    ModalFilter,
    SeparableFilter,
)

CPU = torch.device("cpu")


@pytest.mark.parametrize("size", [(6,), (4, 3), (3, 2, 4)])
@pytest.mark.parametrize("window", ["exponential", "gaussian"])
def test_taps_are_window_times_ffn_of_all_coordinates(size: tuple[int, ...], window: str) -> None:
    """Lag by lag, with float64 formulas of its own."""
    axes, channels, filters = len(size), 3, 2
    h = HyenaFilterND(channels, size, filters, emb_dim=5, width=7, inner_layers=1, window=window, dtype=torch.float64)
    with torch.no_grad():
        h.window.rates.add_(torch.rand_like(h.window.rates))  # a rate of its own for each axis and output
    taps = h(size)
    bands = [1e-4, 1.0]
    for lag in torch.cartesian_prod(*(torch.arange(1 - n, n) for n in size)).view(-1, axes).tolist():
        features, decay, signs = [], torch.ones(2**axes * filters * channels, dtype=torch.float64), 0
        for axis, (k, n) in enumerate(zip(lag, size, strict=True)):
            t, w = abs(k) / max(n - 1, 1), 2 * math.pi * abs(k) / n
            features += [t, *(math.cos(f * w) for f in bands), *(-math.sin(f * w) for f in bands)]
            signs = 2 * signs + (k < 0)
            exponent = t * h.window.rates[axis]
            decay = decay * torch.exp(-(exponent if window == "exponential" else exponent**2))
        x = torch.tensor(features, dtype=torch.float64)
        for layer in h.ffn.hidden:
            x = torch.sin(h.ffn.freq * (layer.weight @ x + layer.bias))
        out = ((h.ffn.out.weight @ x) * decay).view(2**axes, filters, channels)[signs]
        at = (slice(None), *(k + n - 1 for k, n in zip(lag, size, strict=True)))
        torch.testing.assert_close(taps[at], out)


def test_modules_and_the_fused_op_agree() -> None:
    h, hooked = (HyenaFilterND(3, (6, 5), 2, dtype=torch.float64) for _ in range(2))
    hooked.load_state_dict(h.state_dict())
    called = []
    hooked.ffn.hidden[0].register_forward_hook(lambda *_: called.append(1))
    grad = torch.randn(h.taps_shape((6, 4)), dtype=torch.float64)
    for one in (h, hooked):
        one((6, 4)).backward(grad)
    assert called
    torch.testing.assert_close(hooked((6, 4)), h((6, 4)))
    for a, b in zip(h.parameters(), hooked.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)


def test_with_one_axis_it_is_the_two_sided_filter() -> None:
    one, grid = HyenaFilter(4, 20, 2, causal=False, dtype=torch.float64), HyenaFilterND(4, 20, 2, dtype=torch.float64)
    grid.ffn.load_state_dict(one.ffn.state_dict())
    with torch.no_grad():
        grid.window.rates.copy_(one.window.deltas[None])
    for n in (1, 13, 20):
        torch.testing.assert_close(grid((n,)), one(n))


@pytest.mark.parametrize("size", [(1, 1), (64, 64), (5, 300), (9, 12, 10)])
def test_filters_start_with_unit_norm(size: tuple[int, ...]) -> None:
    h = HyenaFilterND(6, size, 2)
    for _ in range(2):
        norm = h(size).square().flatten(1, -2).sum(1).sqrt()
        assert 0.8 < norm.mean() < 1.2
        assert 0.5 < norm.min() <= norm.max() < 2
        before = h.ffn.out.weight.clone()
        h.reset_parameters()
        assert not torch.equal(before, h.ffn.out.weight)


def test_windows_fall_to_their_target() -> None:
    for kind, power in ((ExponentialWindowND, 1), (GaussianWindowND, 2)):
        window = kind(5, 2, 3, slow_decay_pct=1.5, fast_decay_pct=0.3, target=0.01).double()
        first, second = window([torch.tensor([0.0, 0.3, 1.5]).double(), torch.tensor([0.15]).double()])
        assert (first.shape, second.shape) == ((3, 15), (1, 15))
        assert first[0].eq(1).all()
        for columns in first.split(5, dim=1):
            torch.testing.assert_close(columns[2, 0].item(), 0.01, rtol=1e-5, atol=0)
            torch.testing.assert_close(columns[1, 4].item(), 0.01, rtol=1e-5, atol=0)
        torch.testing.assert_close(second[0, 4].item(), 0.01 ** (0.5**power), rtol=1e-5, atol=0)
        window([torch.ones(2), torch.ones(2)])[1].sum().backward()
        assert window.rates.grad[1].abs().min() > 0
        assert not list(kind(3, 2, trainable=False).parameters())
        with pytest.raises(ValueError, match=r"target=1.5, slow_decay_pct=1.5, fast_decay_pct=0.3"):
            kind(3, 2, target=1.5)


def test_a_window_of_ones_own() -> None:
    class Box(nn.Module):
        def forward(self, times):
            return [(t < 0.5).to(t)[:, None].expand(-1, 16) for t in times]

    taps = HyenaFilterND(4, (9, 9), window=Box())((9, 9))
    assert not taps[:, :5].any()
    assert taps[:, 5:-5, 5:-5].abs().sum() > 0
    with pytest.raises(ValueError, match="'exponential', 'gaussian', got 'box'"):
        HyenaFilterND(4, (9, 9), window="box")


def test_another_resolution_has_the_same_filter() -> None:
    """A field sampled twice as densely is convolved with the same kernel, to the width of a position."""
    h = HyenaFilterND(3, (33, 17), emb_dim=3, freq=1.0, dtype=torch.float64)
    coarse = h((33, 17)).detach()
    h.extend((66, 34), "stretch")
    fine = h((66, 34)).detach()
    assert h.state_dict()["density"].item() == 0.25
    every = fine[:, 1:-1:2, 1:-1:2] * 4
    assert every.shape == coarse.shape
    assert (every - coarse).abs().max() < 0.1 * coarse.abs().max()
    assert (fine.sum((1, 2)) - coarse.sum((1, 2))).abs().max() < 0.1 * coarse.abs().sum((1, 2)).max()
    saved, other = h.state_dict(), HyenaFilterND(3, (66, 34), emb_dim=3, freq=1.0, dtype=torch.float64)
    other.load_state_dict(saved)
    torch.testing.assert_close(other((66, 34)), fine)
    h.reset_parameters()
    assert h.density == 1


@pytest.mark.parametrize(
    "filter",
    [partial(HyenaFilter, emb_dim=3, freq=1.0), partial(S4D, modes=1, start="real"), partial(DSS, modes=2)],
    ids=["hyena", "s4d", "dss"],
)
def test_products_at_another_resolution_keep_their_sums(filter) -> None:
    """Whether the filters of the axes divide their taps by as much as there are more of them, or not."""
    h = SeparableFilter(3, (33, 20), filter=filter, dtype=torch.float64)
    coarse = h((33, 20)).detach()
    h.extend((66, 60), "stretch")
    fine, scale = h((66, 60)).detach(), coarse.abs().sum((1, 2))
    assert ((fine.sum((1, 2)) - coarse.sum((1, 2))).abs() < 0.2 * scale).all()
    other = SeparableFilter(3, (66, 60), filter=filter, dtype=torch.float64)
    other.load_state_dict(h.state_dict())
    torch.testing.assert_close(other((66, 60)), fine)


def test_a_product_of_state_spaces_by_definition() -> None:
    """``C exp(A dt)^t B`` of each axis and direction, multiplied, in float64."""
    size, channels = (5, 7), 3
    h = S4ND(channels, size, 2, filter=partial(S4D, modes=4), dtype=torch.float64)
    factors = []
    for one, n in zip(h.filters, size, strict=True):
        a = torch.complex(-one.log_decay.exp(), one.frequency)
        dt = one.log_dt.exp()[..., None]
        b = ((dt * a).exp() - 1) / a
        weight = torch.view_as_complex(one.C.detach())

        def at(row: int, lag: int, a=a, dt=dt, b=b, weight=weight) -> Tensor:
            return 2 * (weight * b * (dt * a * lag).exp())[row].sum(-1).real

        taps = [[at(f if k >= 0 else 2 + f, k if k >= 0 else -k - 1) for k in range(1 - n, n)] for f in range(2)]
        factors.append(torch.stack([torch.stack(row) for row in taps]))
    want = factors[0][:, :, None] * factors[1][:, None]
    torch.testing.assert_close(h(size), want)


def test_axes_may_have_filters_of_different_kinds() -> None:
    h = SeparableFilter(3, (6, 5), filter=[partial(ExplicitFilter, taps=2), S4D], dtype=torch.float64)
    first, second = h.factors((6, 5))
    assert (first.shape, second.shape) == ((1, 3, 3), (1, 9, 3))
    torch.testing.assert_close(h((6, 5))[0, 4:7], first[0][:, None] * second)
    assert not h((6, 5))[0, :4].any()
    mixed = SeparableFilter(3, (6, 5), filter=[S4D, ExplicitFilter], dtype=torch.float64)
    want = mixed((6, 5))
    with pytest.raises(ValueError, match="cannot be stretched"):
        mixed.extend((12, 10), "stretch")
    assert torch.equal(mixed((6, 5)), want)
    assert (mixed.size, mixed.filters[0].l_max) == ((6, 5), 6)


def test_filters_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match=r"size=\(6, 5\) has 2 axes, got 1 filters"):
        SeparableFilter(3, (6, 5), filter=[S4D])
    with pytest.raises(ValueError, match="causal=False"):
        SeparableFilter(3, (6, 5), filter=ModalFilter)
    with pytest.raises(ValueError, match="two-sided"):
        SeparableFilter(3, (6, 5), filter=lambda *a, **k: nn.Identity())
