"""``hyena::direct_recurrence``, the mixing step with few taps, against explicit matrices."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from helpers.cases import ANY_LENGTH, DTYPES, LAYOUTS, MASKS, Judge, Tier, compare, laid_out, offsets, place, rand
from helpers.gated_conv import direct_errors
from helpers.recurrence import check_gradients_of_padding, convolve, inputs, matrices, mix
from hyena import ops

# Two gates and a value; a gate and a value.
KINDS = pytest.mark.parametrize(("order", "value_filter"), [(2, False), (1, True)], ids=["two gates", "one gate"])


def check(
    x: dict,
    tier: Tier,
    dtype: torch.dtype,
    layouts: dict | None = None,
    causal: bool = True,
    judge: Judge | None = None,
) -> None:
    dy = laid_out(gradient_of(x), (layouts or {}).get("dy", "contiguous"))
    wide, allowed = torch.promote_types(dtype, torch.float32), direct_errors(dtype)
    fn, want = partial(mix, causal=causal), definition_of(x, causal)
    compare(fn, want, x, dy, tier, dtype, layouts, judge, allowed=allowed, h=wide)


def gradient_of(x: dict) -> Tensor:
    return rand(x["z"].size(0), x["z"].size(1), x["d"].size(1))


def definition_of(x: dict, causal: bool) -> Callable[..., Tensor]:
    return partial(matrices, order=x["z"].size(2) // x["d"].size(1) - 1, causal=causal)


@lru_cache
def case_of_length(length: int, taps: int, causal: bool) -> tuple[dict, Judge]:
    x = inputs(1, length, 2, taps=taps, causal=causal, mask="random")
    return x, Judge.of(definition_of(x, causal), x, gradient_of(x))


@pytest.mark.parametrize("causal", [True, False], ids=["causal", "two-sided"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("length", "taps"), [(1, 7), (9, 70), (513, 70), (1100, 7)])
def test_lengths(tier: Tier, dtype: torch.dtype, length: int, taps: int, causal: bool) -> None:
    """Around the ends of a tile, and more taps than there are positions."""
    x, judge = case_of_length(length, taps, causal)
    check(x, tier, dtype, causal=causal, judge=judge)


@KINDS
@pytest.mark.parametrize("causal", [True, False], ids=["causal", "two-sided"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_parts(tier: Tier, dtype: torch.dtype, order: int, value_filter: bool, causal: bool) -> None:
    for mask, short, z_bias in (("none", 3, True), ("left", 3, False), ("empty_row", 1, True), ("none", 4, False)):
        kind = {"order": order, "value_filter": value_filter, "causal": causal, "short": short, "z_bias": z_bias}
        check(inputs(2, 31, 3, taps=9, mask=mask, **kind), tier, dtype, causal=causal)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(tier: Tier, dtype: torch.dtype, layout: str) -> None:
    for dy in LAYOUTS[:3] if layout != "expanded" else ["expanded"]:
        check(inputs(3, 19, 10, taps=5, groups=5, mask="right"), tier, dtype, {"z": layout, "dy": dy})


@pytest.mark.parametrize("groups", [1, 2, 16, 33, 66])
def test_channels_that_share_filters(tier: Tier, groups: int) -> None:
    """Groups of lanes with one filter, several, and one each."""
    for channels in (66, 16 * groups):
        if channels % groups == 0:
            check(inputs(2, 35, channels, taps=7, groups=groups), tier, torch.float32)


@given(data=st.data())
def test_anything(tier: Tier, data: st.DataObject) -> None:
    draw = data.draw
    order, value_filter = draw(st.sampled_from([(2, False), (1, True)]))
    causal, dtype, batch, length = (
        draw(st.booleans()),
        draw(st.sampled_from(DTYPES)),
        draw(st.integers(0, 3)),
        draw(ANY_LENGTH),
    )
    groups, width = draw(st.sampled_from([1, 2, 3, 8, 17])), draw(st.sampled_from([1, 2, 5]))
    x = inputs(
        batch,
        length,
        groups * width,
        order=order,
        value_filter=value_filter,
        causal=causal,
        taps=draw(st.integers(1, 40)),
        groups=groups,
        short=draw(st.integers(1, 5)),
        bias=draw(st.booleans()),
        mask=draw(st.sampled_from(MASKS[: 5 if batch else 1])),
        z_bias=draw(st.booleans()),
    )
    layouts = {name: draw(st.sampled_from(LAYOUTS[:-1] if batch else LAYOUTS[:1])) for name in ("z", "dy")}
    check(x, tier, dtype, layouts, causal)


@given(data=st.data())
def test_packed_rows(tier: Tier, data: st.DataObject) -> None:
    sizes = data.draw(st.lists(st.integers(0, 70), min_size=1, max_size=6).filter(sum))
    order, value_filter = data.draw(st.sampled_from([(2, False), (1, True)]))
    causal, dtype = data.draw(st.booleans()), data.draw(st.sampled_from(DTYPES))
    kind = {"order": order, "value_filter": value_filter, "causal": causal, "z_bias": data.draw(st.booleans())}
    x = inputs(
        1, sum(sizes), 4, taps=data.draw(st.integers(1, 80)), mask=data.draw(st.sampled_from(MASKS[:-1])), **kind
    )
    x["cu_seqlens"] = offsets(sizes, data.draw(st.sampled_from([torch.int32, torch.int64])))
    check(x, tier, dtype, {"z": data.draw(st.sampled_from(LAYOUTS))}, causal)


def test_packed_rows_of_several_tiles(tier: Tier) -> None:
    x = inputs(1, 1800, 3, taps=9)
    x["cu_seqlens"] = offsets([600, 0, 1, 1199])
    check(x, tier, torch.float32)


@pytest.mark.parametrize("taps", [7, 128])
def test_as_transforms_give_it(tier: Tier, taps: int) -> None:
    """Several groups of vectors, a row of several tiles."""
    x = place(inputs(2, 1300, 80, taps=taps, groups=5), tier, torch.float64)
    with tier():
        torch.testing.assert_close(mix(**x), convolve(**x))


def test_the_same_bits_whatever_the_threads(device: str) -> None:
    x = place(inputs(2, 1300, 80, taps=40), Tier("any", device), torch.float32)
    threads, got = torch.get_num_threads(), []
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            got.append(mix(**x))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(y, got[0]) for y in got)


@pytest.mark.parametrize("what", [torch.inf, torch.nan])
def test_what_is_not_finite_stays_where_its_taps_reach(tier: Tier, what: float) -> None:
    at, taps, short = 517, 20, 3
    x = place(inputs(2, 700, 4, taps=taps), tier, torch.float32)
    with tier():
        y = mix(**x)
        x["z"][1, at] = what
        changed = mix(**x)
    reached = torch.zeros_like(y, dtype=torch.bool)
    reached[1, at : at + taps + short - 1] = True
    assert not changed[1, at].isfinite().any()
    assert torch.equal(changed[~reached], y[~reached])


def test_what_stands_in_the_padding_does_not_matter(tier: Tier) -> None:
    x = place(inputs(3, 19, 4, taps=5, mask="empty_row", z_bias=True), tier, torch.float32)
    hidden = ~x["mask"]
    dirty = {**x, "z": torch.where(hidden[..., None], torch.nan, x["z"])}
    got = []
    for case in (x, dirty):
        case["z"].requires_grad_()
        with tier():
            y = mix(**case)
            got.append((y, torch.autograd.grad(y.square().sum(), case["z"])[0]))
    (y, g), (dirty_y, dirty_g) = got
    assert torch.equal(y, dirty_y)
    assert torch.equal(g, dirty_g)
    assert not y[hidden].any()
    assert not g[hidden].any()


@KINDS
@pytest.mark.parametrize("causal", [True, False], ids=["causal", "two-sided"])
def test_gradgradcheck(tier: Tier, order: int, value_filter: bool, causal: bool) -> None:
    kind = {"order": order, "value_filter": value_filter, "causal": causal, "z_bias": causal}
    x = place(inputs(2, 4, 2, taps=3, groups=1, mask="right", **kind), tier, torch.float64)
    mask = x.pop("mask")
    leaves = tuple(t.requires_grad_() for t in x.values())

    def fn(*a: Tensor) -> Tensor:
        return mix(*a[:5], mask, None, *a[5:], causal=causal)

    with tier():
        assert torch.autograd.gradcheck(fn, leaves)
        assert torch.autograd.gradgradcheck(fn, leaves)


@pytest.mark.parametrize("layout", ["contiguous", "channel_major", "sliced"])
@pytest.mark.parametrize("z_bias", [False, True])
def test_opcheck(device: str, layout: str, z_bias: bool) -> None:
    x = place(inputs(2, 6, 4, taps=3, mask="random", z_bias=z_bias), Tier("any", device), torch.float32, {"z": layout})
    z, weight, bias, h, d, mask, *last = x.values()
    h, d = h[0], d[0]
    leaves = [t.requires_grad_() for t in (z, weight, bias, h, d)]
    arguments = (*leaves, mask, None, last[0].requires_grad_() if last else None, True)
    torch.library.opcheck(torch.ops.hyena.direct_recurrence.default, arguments)
    arguments = [t.detach() if isinstance(t, Tensor) else t for t in arguments]
    dy = ops.direct_recurrence(*arguments[:-1])
    torch.library.opcheck(torch.ops.hyena.direct_recurrence_backward.default, (dy, *arguments))


def test_half_precision_weights(tier: Tier) -> None:
    """Gradients come in the dtype of what they belong to."""
    x = place(inputs(2, 9, 4, taps=3), tier, torch.bfloat16)
    x = {name: t for name, t in x.items() if t is not None}
    leaves = [t.requires_grad_() for t in x.values()]
    with tier():
        grads = torch.autograd.grad(mix(**dict(zip(x, leaves, strict=True))).sum(), leaves)
    assert {g.dtype for g in grads} == {torch.bfloat16}


def test_errors_name_the_numbers() -> None:
    z, weight, h, d = torch.zeros(2, 7, 12), torch.zeros(12, 3), torch.zeros(5, 4), torch.zeros(4)
    with pytest.raises(ValueError, match=r"z of 12 channels and d of shape \(5,\): z must be \(B, L, 3 C\)"):
        ops.direct_recurrence(z, weight, None, h, torch.zeros(5))
    with pytest.raises(ValueError, match=r"weight must be \(12, taps\) .*got \(11, 3\)"):
        ops.direct_recurrence(z, weight[:11], None, h, d)
    with pytest.raises(ValueError, match=r"4 channels cannot share 3 filters"):
        ops.direct_recurrence(z, weight, None, torch.zeros(5, 3), d)
    with pytest.raises(ValueError, match=r"odd number of taps.*got 4"):
        ops.direct_recurrence(z, weight, None, h[:4], d, causal=False)
    with pytest.raises(ValueError, match=r"mask must be a bool tensor of shape \(2, 7\).*\(7, 2\)"):
        ops.direct_recurrence(z, weight, None, h, d, torch.ones(7, 2, dtype=torch.bool))


@pytest.mark.parametrize("poison", [torch.nan, torch.inf])
def test_gradients_of_padding_do_not_spread(tier: Tier, poison: float) -> None:
    """Whatever they are: nothing that is kept changes with them, in any layout and order."""
    check_gradients_of_padding(mix, [(2, False), (1, True)], tier, poison)
