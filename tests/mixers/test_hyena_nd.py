"""Hyena over grids, against explicit convolutions in float64, and against the operator of one axis."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor

from helpers import grids, oracle
from helpers.mixers import SMALL, D
from hyena import HyenaOperator
from hyena.filters import S4D, S4ND, HyenaFilter, HyenaFilterND
from hyena.mixers import HyenaND
from hyena.optim import param_groups


def by_definition(op: HyenaND, u: Tensor, mask: Tensor | None = None) -> Tensor:
    """The operator tap by tap; shares with it the taps of its filters, which have tests of their own."""
    space, axes, boundary = u.shape[1:-1], u.dim() - 2, op.conv.boundaries
    z = oracle.keep(oracle.keep(u, mask) @ op.in_proj.weight.T + op.in_proj.bias, mask)
    weight = op.short.weight.flip(tuple(range(1, axes + 1))).movedim(0, -1)  # by lag
    if op.short.padding == "causal":
        z = grids.conv(z, weight, causal=(True,) * axes, boundary=boundary)
    else:
        taps = op.short.taps  # lags -(K // 2) … K - 1 - K // 2, as an odd number of taps
        missing = taps // 2 - (taps - 1 - taps // 2)
        weight = torch.nn.functional.pad(weight, (0, 0, *(0, missing) * axes))
        z = grids.conv(z, weight, causal=(False,) * axes, boundary=boundary)
    z = oracle.keep(z + op.short.bias, mask)
    *x, v = z.split(op.width, dim=-1)
    h = op.conv.filter(space) if op.conv.filter is not None else []

    def convolve(i: int, v: Tensor) -> Tensor:
        d = op.conv.bias[i].repeat_interleave(v.size(-1) // op.conv.bias.size(1))
        return grids.conv(v, h[i], d, causal=(False,) * axes, boundary=boundary)

    gates = list(x[:0:-1])
    if op.value_filter:
        gates = [None, *gates]
    outer = False
    for i, gate in enumerate(gates):
        if gate is not None and op.num_heads == 1:
            v = gate * v
        elif gate is not None:
            g = gate.unflatten(-1, (op.num_heads, -1))
            if outer:
                v = (g[..., None] * v).sum(-2).flatten(-2)
            else:
                v = g[..., None] * v.unflatten(-1, (op.num_heads, -1))[..., None, :]
            outer = not outer
        shape = v.shape
        v = convolve(i, v.flatten(axes + 1)).reshape(shape)
    v = (x[0].unflatten(-1, (op.num_heads, -1))[..., None] * v).sum(-2).flatten(-2) if outer else x[0] * v
    return v @ op.out_proj.weight.T + op.out_proj.bias


@pytest.mark.parametrize(
    ("space", "settings"),
    [
        ((7,), {}),
        ((4, 5), {}),
        ((4, 5), {"order": 3, "value_filter": True}),
        ((5, 3), {"boundary": ("circular", "reflect")}),
        ((5, 3), {"boundary": ("reflect", "circular"), "short_taps": 4}),
        ((6,), {"boundary": "reflect", "short_taps": 2}),
        ((3, 4), {"num_heads": 2, "order": 3}),
        ((3, 4), {"num_heads": 2}),
        ((3, 4), {"filter_groups": 2, "inner_factor": 2, "short_padding": "causal"}),
        ((2, 4, 3), {"boundary": ("zero", "circular", "zero")}),
        ((1, 1), {"boundary": ("circular", "reflect")}),
        ((4, 5), {"filter": partial(S4ND, filter=partial(S4D, modes=2)), "boundary": ("zero", "circular")}),
    ],
    ids=str,
)
@pytest.mark.parametrize("masked", [False, True])
def test_is_the_definition(space: tuple[int, ...], settings: dict, masked: bool) -> None:
    op = HyenaND(D, space, **{"filter": SMALL, **settings}, dtype=torch.float64)
    u = torch.randn(2, *space, D, dtype=torch.float64)
    mask = torch.rand(2, *space) < 0.7 if masked else None
    dy = torch.randn_like(u)
    results = []
    for fn in (op, partial(by_definition, op)):
        leaf = u.clone().requires_grad_()
        y = fn(leaf, mask)
        named = [p for p in op.parameters() if p.numel()]
        results.append([y, *torch.autograd.grad(y, [leaf, *named], dy)])
    for got, want in zip(*results, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("settings", [{}, {"order": 3}, {"num_heads": 2}, {"value_filter": True, "short_taps": 1}])
@pytest.mark.parametrize("kept", [None, 13])
def test_with_one_axis_it_is_the_two_sided_operator(settings: dict, kept: int | None) -> None:
    one = HyenaOperator(D, 24, causal=False, dtype=torch.float64, **settings)
    grid = HyenaND(D, 24, short_padding="causal", dtype=torch.float64, **settings)
    weights = one.state_dict()
    weights["conv.filter.encodings.0.time_unit"] = weights.pop("conv.filter.encoding.time_unit")
    weights["conv.filter.window.rates"] = weights.pop("conv.filter.window.deltas")[None]
    weights["conv.filter.density"] = torch.ones(())
    grid.load_state_dict(weights)
    u = torch.randn(2, 20, D, dtype=torch.float64)
    mask = None if kept is None else torch.arange(20) < torch.tensor([[20], [kept]])
    torch.testing.assert_close(grid(u, mask), one(u, mask), rtol=1e-10, atol=1e-11)
    torch.testing.assert_close(grid.eval()(u, mask), one.eval()(u, mask), rtol=1e-10, atol=1e-11)


def test_a_circle_knows_no_beginning() -> None:
    op = HyenaND(D, (6, 5), boundary="circular", filter=SMALL, dtype=torch.float64)
    u = torch.randn(1, 6, 5, D, dtype=torch.float64)
    torch.testing.assert_close(op(u.roll((2, 3), (1, 2))), op(u).roll((2, 3), (1, 2)))


def test_extending() -> None:
    op = HyenaND(D, (6, 5), filter=SMALL, dtype=torch.float64).eval()
    u = torch.randn(1, 6, 5, D, dtype=torch.float64)
    with torch.no_grad():
        want = op(u)
        op.extend((9, 5))
        assert op.size == (9, 5)
        torch.testing.assert_close(op(u), want)
        assert op(torch.randn(1, 9, 5, D, dtype=torch.float64)).shape == (1, 9, 5, D)
        op.extend((18, 10), "stretch")
        assert op.conv.filter.density == 0.25
    for one in (op, HyenaND(D, (6, 5), order=1)):
        with pytest.raises(ValueError, match="'continue', 'stretch', got 'zoom'"):
            one.extend((20, 20), "zoom")
    with pytest.raises(ValueError, match=r"2 axes, \(18, 10\), cannot be extended to \(9,\)"):
        op.extend(9)

    class Taps(torch.nn.Module):
        def forward(self, size):
            return torch.zeros(1, *(2 * n - 1 for n in size), D)

    with pytest.raises(ValueError, match=r"Taps, which has no extend\(size, mode\)"):
        HyenaND(D, (6, 5), filter=Taps()).extend((7, 7))


def test_another_resolution() -> None:
    """A smooth field, sampled twice as densely, keeps its output, to the width of a position."""
    torch.manual_seed(0)
    op = HyenaND(D, (24, 24), filter=partial(HyenaFilterND, emb_dim=3, freq=1.0), short_taps=1, dtype=torch.float64)
    with torch.no_grad():
        op.conv.bias.zero_()

    def field(n: int) -> Tensor:
        t = (torch.arange(n, dtype=torch.float64) + 0.5) / n
        waves = [torch.sin(3 * t[:, None] + (1 + c / 3) * t + c) for c in range(D)]
        return torch.stack(waves, -1)[None]

    with torch.no_grad():
        op.out_proj.bias.zero_()
        coarse = op(field(24))
        op.extend((48, 48), "stretch")
        apart = []
        for density in (0.25, 1.0):
            assert density == 1 or op.conv.filter.density == density
            op.conv.filter.density.fill_(density)
            pooled = op(field(48)).unflatten(1, (24, 2)).unflatten(3, (24, 2)).mean((2, 4))
            apart.append((pooled - coarse).norm() / coarse.norm())
    assert apart[0] < 0.2
    assert apart[1] > 1


def test_taps_of_another_shape_are_refused() -> None:
    class Taps(torch.nn.Module):
        def forward(self, size):
            return torch.zeros(1, *size, D)

    with pytest.raises(ValueError, match=r"shape \(1, 6, 5, 8\), and \(1, 11, 9, 8\) are needed"):
        HyenaND(D, (6, 5), filter=Taps())(torch.zeros(1, 6, 5, D))


def test_a_filter_of_ones_own_is_trained_as_filters_are() -> None:
    class Taps(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.taps = torch.nn.Parameter(torch.randn(1, 11, 9, D))

        def forward(self, size):
            return self.taps

    op = HyenaND(D, (6, 5), filter=Taps())
    groups = {group["name"]: group["params"] for group in param_groups(op, 1e-3)}
    assert [id(p) for p in groups["filters"]] == [id(op.conv.filter.taps)]
    assert op(torch.randn(1, 6, 5, D)).shape == (1, 6, 5, D)


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ({"size": (8, 0)}, ValueError, "got 8, 0"),
        ({"size": (2,) * 4}, ValueError, "1 to 3 axes"),
        ({"size": 4.5}, TypeError, "got 4.5"),
        ({"order": 9}, ValueError, "order must be 1 to 8, got 9"),
        ({"num_heads": 3}, ValueError, "width 8 is not a multiple of num_heads=3"),
        ({"boundary": "torus"}, ValueError, "'zero', 'circular', 'reflect', got 'torus'"),
        ({"boundary": ("zero",)}, ValueError, "boundary has 1 entries"),
        ({"short_padding": "valid"}, ValueError, "'same', 'causal', got 'valid'"),
        ({"short_taps": 0}, ValueError, "short_taps must be at least 1, got 0"),
        ({"filter": None}, ValueError, "filter must be a module, .* got None"),
        ({"filter": lambda *a, **k: 3}, ValueError, "made a int, and a module is needed"),
        ({"filter": HyenaFilter}, ValueError, r"along a sequence: for a grid of size=\(6, 5\) take .*=HyenaFilter\)"),
        ({"filter": partial(S4D, modes=2)}, ValueError, r"take partial\(SeparableFilter, filter=S4D\)"),
        ({"causal": True}, TypeError, "causal"),
        ({"bias": 1}, TypeError, "bias must be True or False, got 1"),
    ],
)
def test_bad_arguments(arguments: dict, error: type[Exception], match: str) -> None:
    given = {"d_model": D, "size": (6, 5), **arguments}
    with pytest.raises(error, match=match):
        HyenaND(**given)
