"""Long convolutions over grids, against the definition lag by lag."""

from __future__ import annotations

import itertools
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from helpers import grids
from helpers.cases import DTYPES, Tier, compare, rand
from helpers.grids import BOUNDARIES
from hyena import functional
from hyena.functional import dense, grid
from hyena.functional.layout import Layout

MOST = {1: 40, 2: 9, 3: 5}


@st.composite
def cases(draw: st.DrawFn) -> dict[str, Any]:
    axes = draw(st.integers(1, 3))
    space = tuple(draw(st.integers(1, MOST[axes])) for _ in range(axes))
    causal = tuple(draw(st.booleans()) for _ in range(axes))
    boundary = tuple(draw(st.sampled_from(BOUNDARIES)) for _ in range(axes))
    reach = [draw(st.integers(1, 2 * n + 2 if axes < 3 else n + 1)) for n in space]
    counts = tuple(k if one else 2 * k - 1 for k, one in zip(reach, causal, strict=True))
    return {"space": space, "causal": causal, "boundary": boundary, "counts": counts}


@given(case=cases(), data=st.data())
def test_is_the_sum_over_lags(tier: Tier, case: dict[str, Any], data: st.DataObject) -> None:
    dtype, groups = data.draw(st.sampled_from(DTYPES)), data.draw(st.sampled_from([1, 2, 4]))
    own = (2,) if data.draw(st.booleans()) else ()
    settings = {name: case[name] for name in ("causal", "boundary")}
    x: dict[str, Tensor] = {"x": rand(2, *case["space"], 4)}
    x |= {"h": rand(*own, *case["counts"], groups, seed=1) / 8}
    if data.draw(st.booleans()):
        x |= {"d": rand(4, seed=2)}
    fn, want = partial(functional.fft_conv_nd, **settings), partial(grids.conv, **settings)
    dy = rand(2, *case["space"], 4, seed=3)
    with pytest.MonkeyPatch.context() as patch:
        if data.draw(st.booleans()):  # tap by tap
            patch.setattr(dense, "_TAPS_WITH_GRADIENTS", 10**9)
        compare(fn, want, x, dy, tier, dtype, ordered=False, h=torch.promote_types(dtype, torch.float32))


@pytest.mark.parametrize("boundary", [*itertools.product(BOUNDARIES, repeat=2)], ids=str)
@pytest.mark.parametrize("causal", [*itertools.product([False, True], repeat=2)], ids=str)
def test_every_setting_of_two_axes(causal: tuple[bool, bool], boundary: tuple[str, str]) -> None:
    """Few lags, as many as there are, and more than there are; by transforms in float64, tap by tap in float32."""
    x = rand(1, 4, 6, 2)
    for reach, dtype in itertools.product([(1, 3), (3, 2), (4, 6), (9, 13)], [torch.float64, torch.float32]):
        counts = [k if one else 2 * k - 1 for k, one in zip(reach, causal, strict=True)]
        h = rand(*counts, 2, seed=1) / 8
        got = functional.fft_conv_nd(x.to(dtype), h.to(dtype), causal=causal, boundary=boundary)
        want = grids.conv(x, h, causal=causal, boundary=boundary)
        torch.testing.assert_close(got.double(), want, rtol=0, atol=1e-11 if dtype == torch.float64 else 1e-5)


def test_few_taps_are_applied_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    x, h, few = torch.randn(2, 9, 8, 4), torch.randn(7, 7, 4), torch.randn(5, 5, 2)
    monkeypatch.setattr(grid, "_tap_by_tap", lambda *_: None)
    assert functional.fft_conv_nd(x, h) is None
    assert functional.fft_conv_nd(x.requires_grad_(), h) is not None
    assert functional.fft_conv_nd(x, few) is None
    assert functional.fft_conv_nd(x.double(), few.double()) is not None
    assert functional.fft_conv_nd(x, few.expand(2, -1, -1, -1)) is not None


@given(case=cases(), data=st.data())
def test_separable_filters_go_along_one_axis_after_the_other(
    tier: Tier, case: dict[str, Any], data: st.DataObject
) -> None:
    dtype, groups = data.draw(st.sampled_from(DTYPES)), data.draw(st.sampled_from([1, 2, 4]))
    settings = {name: case[name] for name in ("causal", "boundary")}
    axes = len(case["space"])
    x: dict[str, Tensor] = {"x": rand(2, *case["space"], 4)}
    for i, count in enumerate(case["counts"]):
        own = (2,) if i == 0 and data.draw(st.booleans()) else ()
        x |= {f"h{i}": rand(*own, count, groups, seed=1 + i) / 4}
    x |= {"d": rand(4, seed=9)}

    def fn(x: Tensor, d: Tensor, **h: Tensor) -> Tensor:
        return functional.separable_conv_nd(x, [h[f"h{i}"] for i in range(axes)], d, **settings)

    def want(x: Tensor, d: Tensor, **h: Tensor) -> Tensor:
        rows = []
        for b in range(2):
            factors = [h[f"h{i}"][b] if h[f"h{i}"].dim() == 3 else h[f"h{i}"] for i in range(axes)]
            rows.append(grids.conv(x[b : b + 1], grids.product(factors), d, **settings))
        return torch.cat(rows)

    dy = rand(2, *case["space"], 4, seed=3)
    wide = torch.promote_types(dtype, torch.float32)
    compare(fn, want, x, dy, tier, dtype, ordered=False, **{name: wide for name in x if name.startswith("h")})


@pytest.mark.parametrize("axes", [1, 2, 3])
def test_larger_grids(tier: Tier, axes: int) -> None:
    """Against the transform of the whole grid, padded to twice its size."""
    space = {1: (1009,), 2: (31, 65), 3: (9, 17, 12)}[axes]
    x, h = rand(2, *space, 3), rand(*(2 * n - 1 for n in space), 3, seed=1)
    dims, size = list(range(1, axes + 1)), [3 * n for n in space]
    spectrum = torch.fft.rfftn(h, size, [d - 1 for d in dims])
    full = torch.fft.irfftn(torch.fft.rfftn(x, size, dims) * spectrum, size, dims)
    want = full[(slice(None), *(slice(n - 1, 2 * n - 1) for n in space))]
    with tier():
        got = functional.fft_conv_nd(x.to(tier.device), h.to(tier.device)).cpu()
    assert (got - want).abs().max() < 1e-11 * want.abs().max()


def test_strides_and_memory(tier: Tier) -> None:
    x, h = rand(2, 6, 5, 4).to(tier.device), rand(11, 9, 4, seed=1).to(tier.device)
    with tier():
        want = functional.fft_conv_nd(x, h)
        assert want.is_contiguous()
        other = x.movedim(-1, 1).contiguous().movedim(1, -1)
        for same in (other, x.repeat_interleave(2, 1)[:, ::2], x.expand(2, -1, -1, -1)):
            torch.testing.assert_close(functional.fft_conv_nd(same, h), want)


@pytest.mark.parametrize("shape", [(0, 5, 4, 6), (2, 0, 4, 6), (2, 5, 0, 6)])
def test_no_entries(shape: tuple[int, ...]) -> None:
    x, h = torch.randn(shape, requires_grad=True), torch.randn(3, 3, 6, requires_grad=True)
    y = functional.fft_conv_nd(x, h, boundary="reflect")
    assert y.shape == shape
    y.sum().backward()
    assert not h.grad.any()


def test_one_axis_is_the_convolution_of_a_sequence(tier: Tier) -> None:
    x, d = rand(2, 40, 4).to(tier.device), rand(4, seed=2).to(tier.device)
    with tier():
        for causal, taps in ((True, 30), (False, 59)):
            h = rand(taps, 4, seed=1).to(tier.device)
            for boundary in ("zero", "circular"):
                got = functional.fft_conv_nd(x, h, d, causal=causal, boundary=boundary)
                want = functional.fft_conv(x, h, d, causal=causal, circular=boundary == "circular")
                torch.testing.assert_close(got, want)


def test_rows_hold_no_more_than_they_must() -> None:
    """A grid of zeros around takes one row of its own size times 2 for each further axis; a circle the same."""
    for boundary in ("zero", "circular"):
        layout = Layout.of((32, 32), (63, 63), (False, False), (boundary,) * 2)
        assert layout.length == 32 * 63
    assert Layout.of((32, 32), (63, 63), (False, False), ("reflect",) * 2).length == 62 * 93
    assert Layout.of((32, 32), (7, 7), (False, False), ("zero",) * 2).length == 32 * 35
    assert Layout.of((32, 32), (7, 7), (False, False), ("circular",) * 2).length == 38 * 38
    assert Layout.of((8, 9, 10), (15, 17, 19), (False,) * 3, ("zero",) * 3).length == 8 * 17 * 19


@pytest.mark.parametrize("groups", [20, 40])
def test_channels_are_done_in_pieces(groups: int, monkeypatch: pytest.MonkeyPatch) -> None:
    x, h, d = (t.requires_grad_() for t in (rand(2, 4, 5, 40), rand(7, 9, groups, seed=1), rand(40, seed=2)))
    dy, results = rand(2, 4, 5, 40, seed=3), []
    for piece in (1 << 20, 1):
        monkeypatch.setattr(grid, "_PIECE", piece)
        y = functional.fft_conv_nd(x, h, d)
        assert y.is_contiguous()
        results.append([y, *torch.autograd.grad(y, (x, h, d), dy)])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b)


def test_gradients_of_gradients() -> None:
    x, h, d = (t.requires_grad_() for t in (rand(1, 3, 4, 2), rand(5, 7, 1, seed=1), rand(2, seed=2)))
    fn = partial(functional.fft_conv_nd, boundary=("circular", "reflect"))
    assert torch.autograd.gradcheck(fn, (x, h, d))
    assert torch.autograd.gradgradcheck(fn, (x, h, d))


def test_compiles_in_one_graph() -> None:
    fn = partial(functional.fft_conv_nd, boundary=("zero", "reflect"))
    compiled = torch.compile(fn, fullgraph=True, backend="aot_eager")
    h = rand(9, 9, 4, seed=1)
    for space in ((6, 5), (7, 8)):
        x = rand(2, *space, 4)
        torch.testing.assert_close(compiled(x, h), fn(x, h))
    torch._dynamo.reset()


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"x": torch.zeros(2, 4)}, r"\(B, \*space, C\) with 1 to 3 axes, got torch.float32 of shape \(2, 4\)"),
        ({"x": torch.zeros(2, 2, 2, 2, 2, 4)}, r"1 to 3 axes, got .*\(2, 2, 2, 2, 2, 4\)"),
        ({"x": torch.zeros(2, 5, 6, 4, dtype=torch.int64)}, r"floating point .*torch.int64"),
        ({"h": torch.zeros(3, 4)}, r"h must be .*\(taps 1, taps 2, channels\) or \(2, taps 1, .*\(3, 4\)"),
        ({"h": torch.zeros(1, 3, 3, 4)}, r"\(2, taps 1, taps 2, channels\) .*\(1, 3, 3, 4\)"),
        ({"h": torch.zeros(3, 4, 4)}, r"odd number of taps, lags .* got \(3, 4\)"),
        ({"h": torch.zeros(3, 0, 4)}, r"at least one tap .*\(3, 0, 4\)"),
        ({"h": torch.zeros(3, 3, 3)}, r"4 channels cannot share 3 filters"),
        ({"h": torch.zeros(3, 3, 4, device="meta")}, r"on cpu .* on meta"),
        ({"d": torch.zeros(4, dtype=torch.float64)}, r"d is torch.float64 beside an input of torch.float32"),
        ({"d": torch.zeros(3)}, r"d must be .*\(4,\) .*\(3,\)"),
        ({"boundary": "periodic"}, r"'zero', 'circular', 'reflect', got 'periodic'"),
        ({"boundary": ("zero",) * 3}, r"boundary has 3 entries, .* grid of 2 axes"),
        ({"causal": (True,)}, r"causal has 1 entries, \(True,\), for a grid of 2 axes"),
    ],
)
def test_arguments_that_do_not_fit(arguments: dict[str, Any], match: str) -> None:
    given = {"x": torch.zeros(2, 5, 6, 4), "h": torch.zeros(3, 3, 4), **arguments}
    with pytest.raises(ValueError, match=match):
        functional.fft_conv_nd(given.pop("x"), given.pop("h"), **given)


def test_settings_of_another_kind() -> None:
    x, h = torch.zeros(2, 5, 6, 4), torch.zeros(3, 3, 4)
    for causal in ("yes", 1, (True, 0), None):
        with pytest.raises(TypeError, match=r"causal must be a bool, or a sequence with one for each axis, got"):
            functional.fft_conv_nd(x, h, causal=causal)
    for boundary in (None, True, ("zero", 0)):
        with pytest.raises(TypeError, match=r"boundary must be a str, or a sequence with one for each axis, got"):
            functional.fft_conv_nd(x, h, boundary=boundary)


def test_factors_that_do_not_fit() -> None:
    x = torch.zeros(2, 5, 6, 4)
    with pytest.raises(ValueError, match=r"\(2, 5, 6, 4\) has 2 axes, got 1 factors"):
        functional.separable_conv_nd(x, [torch.zeros(3, 4)])
    with pytest.raises(ValueError, match="odd number of taps"):
        functional.separable_conv_nd(x, [torch.zeros(3, 4), torch.zeros(2, 4)])
