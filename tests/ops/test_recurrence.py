"""``hyena::recurrence``, the whole mixing step, against explicit matrices."""

from __future__ import annotations

from functools import lru_cache, partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from helpers.cases import (
    ANY_LENGTH,
    DTYPES,
    LAYOUTS,
    LENGTHS,
    MASKS,
    Judge,
    Tier,
    compare,
    laid_out,
    offsets,
    place,
    rand,
)
from helpers.recurrence import check_gradients_of_padding, convolve, inputs, matrices, small_parts
from hyena import ops

RECURRENCES = [(order, value_filter) for order in (1, 2, 3, 4) for value_filter in (False, True)]


@lru_cache
def judge_of_length(length: int, causal: bool, mask: str) -> Judge:
    x = inputs(1, length, 2, causal=causal, mask=mask, z_bias=not causal)
    return Judge.of(partial(matrices, order=2, causal=causal), x, rand(1, length, 2))


@pytest.mark.parametrize("mask", ["none", "random"])
@pytest.mark.parametrize("causal", [True, False], ids=["causal", "two-sided"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("length", LENGTHS)
def test_lengths(tier: Tier, dtype: torch.dtype, length: int, causal: bool, mask: str) -> None:
    x, judge = inputs(1, length, 2, causal=causal, mask=mask, z_bias=not causal), judge_of_length(length, causal, mask)
    wide = torch.promote_types(dtype, torch.float32)
    compare(partial(convolve, causal=causal), matrices, x, rand(1, length, 2), tier, dtype, judge=judge, h=wide)


def test_many_rows(tier: Tier) -> None:
    # More than run at once: a kernel's block then takes several rows, and the last block fewer.
    x = inputs(37, 97, 64, mask="random")
    compare(convolve, partial(matrices, order=2), x, rand(37, 97, 64), tier, torch.float32)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("causal", [True, False], ids=["causal", "two-sided"])
@pytest.mark.parametrize(("order", "value_filter"), RECURRENCES)
def test_recurrences(tier: Tier, dtype: torch.dtype, order: int, value_filter: bool, causal: bool) -> None:
    x = inputs(2, 31, 3, order=order, value_filter=value_filter, causal=causal, mask="left")
    fn, want = partial(convolve, causal=causal), partial(matrices, order=order, causal=causal)
    compare(fn, want, x, rand(2, 31, 3), tier, dtype, h=torch.promote_types(dtype, torch.float32))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(tier: Tier, dtype: torch.dtype, layout: str) -> None:
    x = inputs(3, 19, 10, groups=5, mask="right")
    for dy in LAYOUTS[:3] if layout != "expanded" else ["expanded"]:
        g = laid_out(rand(3, 19, 10), dy)
        compare(convolve, partial(matrices, order=2), x, g, tier, dtype, {"z": layout, "dy": dy})


@pytest.mark.parametrize("channels", [1, 2, 7, 8, 9, 15, 16, 17, 31, 33, 64, 65])
def test_channels(tier: Tier, channels: int) -> None:
    """Whatever is left over after whole vectors of channels is done as well."""
    for layout in ("contiguous", "channel_major"):
        x = inputs(2, 35, channels, order=3, mask="random")
        compare(convolve, partial(matrices, order=3), x, rand(2, 35, channels), tier, torch.float32, {"z": layout})


@given(data=st.data())
def test_anything(tier: Tier, data: st.DataObject) -> None:
    order, value_filter = data.draw(st.sampled_from(RECURRENCES))
    causal, dtype = data.draw(st.booleans()), data.draw(st.sampled_from(DTYPES))
    batch, length = data.draw(st.integers(1, 3)), data.draw(ANY_LENGTH)
    groups, width = data.draw(st.sampled_from([1, 2, 3, 8, 9])), data.draw(st.sampled_from([1, 1, 2, 5]))
    x = inputs(
        batch,
        length,
        groups * width,
        order=order,
        value_filter=value_filter,
        causal=causal,
        taps=data.draw(st.integers(1, length)),
        groups=groups,
        **data.draw(small_parts()),
    )
    layouts = {"z": data.draw(st.sampled_from(LAYOUTS[:-1])), "dy": data.draw(st.sampled_from(LAYOUTS[:-1]))}
    wide = torch.promote_types(dtype, torch.float32)
    small = data.draw(st.sampled_from([dtype, wide]))
    fn, want = partial(convolve, causal=causal), partial(matrices, order=order, causal=causal)
    dy = rand(batch, length, groups * width) / 16  # or sums of order 4 leave float16's range
    compare(fn, want, x, dy, tier, dtype, layouts, h=wide, weight=small, bias=small, d=small)


@given(data=st.data())
def test_packed_rows(tier: Tier, data: st.DataObject) -> None:
    sizes = data.draw(st.lists(st.integers(0, 70), min_size=1, max_size=6).filter(sum))
    order, value_filter = data.draw(st.sampled_from(RECURRENCES))
    causal, dtype = data.draw(st.booleans()), data.draw(st.sampled_from(DTYPES))
    x = inputs(
        1,
        sum(sizes),
        4,
        order=order,
        value_filter=value_filter,
        causal=causal,
        taps=data.draw(st.integers(1, max(sizes))),
        groups=data.draw(st.sampled_from([1, 2, 4])),
        mask=data.draw(st.sampled_from(MASKS[:-1])),
        z_bias=data.draw(st.booleans()),
    )
    x["cu_seqlens"] = offsets(sizes, data.draw(st.sampled_from([torch.int32, torch.int64])))
    layouts = {"z": data.draw(st.sampled_from(LAYOUTS)), "dy": data.draw(st.sampled_from(LAYOUTS))}
    room = ops.transform_length(max(sizes) + data.draw(st.sampled_from([0, 0, 11])))
    fn, want = partial(convolve, causal=causal, size=room), partial(matrices, order=order, causal=causal)
    dy = laid_out(rand(1, sum(sizes), 4), layouts["dy"])
    compare(fn, want, x, dy, tier, dtype, layouts, h=torch.promote_types(dtype, torch.float32))


@pytest.mark.parametrize("causal", [True, False], ids=["causal", "two-sided"])
@pytest.mark.parametrize("size", [37, 64, 67, 96])
def test_room_for_more_than_the_row(tier: Tier, size: int, causal: bool) -> None:
    x = inputs(2, 29, 3, taps=33, order=3, causal=causal, mask="random")
    fn, want = partial(convolve, causal=causal, size=size), partial(matrices, order=3, causal=causal)
    compare(fn, want, x, rand(2, 29, 3), tier, torch.float32)


@pytest.mark.parametrize("poison", [torch.nan, torch.inf])
@pytest.mark.parametrize("layout", ["contiguous", "channel_major"])
@pytest.mark.parametrize(("order", "z_bias"), [(3, False), (2, True)], ids=["order 3", "bias of z"])
def test_what_stands_in_the_padding_does_not_matter(
    tier: Tier, poison: float, layout: str, order: int, z_bias: bool
) -> None:
    x = place(inputs(3, 19, 4, order=order, mask="empty_row", z_bias=z_bias), tier, torch.float32, {"z": layout})
    hidden = ~x["mask"]
    dirty = {**x, "z": laid_out(torch.where(hidden[..., None], poison, x["z"]), layout)}
    got = []
    for case in (x, dirty):
        case["z"].requires_grad_()
        with tier():
            y = convolve(**case)
            got.append((y, torch.autograd.grad(y.square().sum(), case["z"])[0]))
    (y, g), (dirty_y, dirty_g) = got
    assert torch.equal(y, dirty_y)
    assert torch.equal(g, dirty_g)
    assert not y[hidden].any()
    assert not g[hidden].any()


@pytest.mark.parametrize("causal", [True, False], ids=["causal", "two-sided"])
@pytest.mark.parametrize(("order", "value_filter"), [(1, True), (2, False), (3, True)])
def test_gradgradcheck(tier: Tier, order: int, value_filter: bool, causal: bool) -> None:
    x = inputs(2, 4, 2, order=order, value_filter=value_filter, causal=causal, groups=1, mask="right", z_bias=causal)
    x = place(x, tier, torch.float64)
    mask = x.pop("mask")
    leaves = tuple(t.requires_grad_() for t in x.values())

    def fn(*a: Tensor) -> Tensor:
        return convolve(*a[:5], mask, None, *a[5:], causal=causal)

    with tier():
        assert torch.autograd.gradcheck(fn, leaves)
        assert torch.autograd.gradgradcheck(fn, leaves)


def test_gradgradcheck_packed(tier: Tier) -> None:
    x = place(inputs(1, 7, 2, taps=4, mask="random", z_bias=True), tier, torch.float64)
    mask, at = x.pop("mask"), offsets([3, 0, 4]).to(tier.device)
    leaves = tuple(t.requires_grad_() for t in x.values())

    def fn(*a: Tensor) -> Tensor:
        return convolve(*a[:5], mask, at, *a[5:])

    with tier():
        assert torch.autograd.gradcheck(fn, leaves)
        assert torch.autograd.gradgradcheck(fn, leaves)


def test_gradgradcheck_without_filters(tier: Tier) -> None:
    x = place(inputs(2, 4, 2, order=1, bias=False), tier, torch.float64)
    leaves = (x["z"].requires_grad_(), x["weight"].requires_grad_())
    spectrum = torch.zeros(0, 1, 5, 2, dtype=torch.float64, device=tier.device)
    with tier():
        assert torch.autograd.gradgradcheck(lambda z, w: ops.recurrence(z, w, None, spectrum, x["d"]), leaves)


def test_gradients_only_where_asked(tier: Tier) -> None:
    """Each input may be the only one that wants a gradient, and gets the same one then."""
    x = place(inputs(2, 9, 4, order=3, mask="random", z_bias=True), tier, torch.float64)
    names = [name for name in x if name != "mask"]
    with tier():
        every = {name: x[name].detach().requires_grad_() for name in names}
        found = torch.autograd.grad(convolve(**every, mask=x["mask"]).square().sum(), list(every.values()))
        for name, g in zip(names, found, strict=True):
            alone = {**x, name: x[name].detach().requires_grad_()}
            torch.testing.assert_close(torch.autograd.grad(convolve(**alone).square().sum(), alone[name])[0], g)


@pytest.mark.parametrize("layout", ["contiguous", "channel_major"])
def test_an_empty_batch(tier: Tier, layout: str) -> None:
    for x in (inputs(0, 9, 4), inputs(0, 9, 4, z_bias=True)):
        compare(convolve, partial(matrices, order=2), x, rand(0, 9, 4), tier, torch.float32, {"z": layout})


def test_modes_that_watch_ops_change_nothing(device: str) -> None:
    """Flop counters and selective checkpointing run ops inside a dispatch mode, where lazy conj views get lost."""
    x = place(inputs(2, 9, 4), Tier("any", device), torch.float64)
    z = x["z"].requires_grad_()
    (want,) = torch.autograd.grad(convolve(**x).square().sum(), z)
    with FlopCounterMode(display=False):
        (got,) = torch.autograd.grad(convolve(**x).square().sum(), z)
    torch.testing.assert_close(got, want)


@pytest.mark.parametrize(
    ("kind", "layout"),
    [
        ({"mask": "random", "order": 3}, "contiguous"),
        ({"mask": "random", "value_filter": True, "groups": 2}, "channel_major"),
        ({"bias": False}, "sliced"),
        ({"order": 1}, "contiguous"),
        ({"z_bias": True}, "channel_major"),
    ],
    ids=["all", "paper", "no-bias", "no-filter", "bias-of-z"],
)
def test_opcheck(device: str, kind: dict, layout: str) -> None:
    x = place(inputs(2, 6, 4, **kind), Tier("any", device), torch.float32, {"z": layout})
    spectrum = ops.filter_spectrum(x.pop("h"), 6)
    z, weight, bias, d, mask, *z_bias = x.values()
    arguments = (z, weight, bias, spectrum, d, mask, None, *(z_bias or [None]), False)
    for t in arguments[:-1]:
        if t is not None and t.is_floating_point():
            t.requires_grad_()
    torch.library.opcheck(torch.ops.hyena.recurrence.default, arguments)
    dy = ops.recurrence(*arguments).detach()
    arguments = [t.detach() if isinstance(t, Tensor) else t for t in arguments]
    torch.library.opcheck(torch.ops.hyena.recurrence_backward.default, (dy, *arguments))


def test_opcheck_packed(device: str) -> None:
    x = inputs(1, 6, 4, taps=4, mask="random", z_bias=True)
    x = place(x, Tier("any", device), torch.float32, {"z": "channel_major"})
    spectrum = ops.filter_spectrum(x.pop("h"), 6)
    z, weight, bias, d, mask, z_bias = x.values()
    *arguments, z_bias = (t.requires_grad_() for t in (z, weight, bias, spectrum, d, z_bias))
    torch.library.opcheck(
        torch.ops.hyena.recurrence.default, (*arguments, mask, offsets([4, 0, 2]).to(device), z_bias, False)
    )


def test_errors_name_the_numbers() -> None:
    z, weight, bias, d = torch.zeros(2, 7, 12), torch.zeros(12, 3), torch.zeros(12), torch.zeros(1, 4)
    spectrum = ops.filter_spectrum(torch.zeros(1, 7, 4), 8)
    with pytest.raises(ValueError, match=r"one F, got \(2, 4\) and \(1, 4, 9, 2\)"):
        ops.recurrence(z, weight, bias, spectrum, torch.zeros(2, 4))
    with pytest.raises(ValueError, match=r"one F, got \(1, 4\) and \(4, 9, 2\)"):
        ops.recurrence(z, weight, bias, spectrum[0], d)
    with pytest.raises(ValueError, match=r"z of 13 channels is not \(N \+ 1\) x 4 .* with 1 = N - 1 or N"):
        ops.recurrence(torch.zeros(2, 7, 13), torch.zeros(13, 3), None, spectrum, d)
    with pytest.raises(ValueError, match=r"z of 4 channels is not \(N \+ 1\) x 4"):
        ops.recurrence(z[..., :4], weight[:4], None, spectrum, d)
    with pytest.raises(ValueError, match=r"z of 16 channels is not \(N \+ 1\) x 4 .* with 1 = N - 1 or N"):
        ops.recurrence(torch.zeros(2, 7, 16), torch.zeros(16, 3), None, spectrum, d)
    with pytest.raises(ValueError, match=r"weight must be \(12, taps\) .*got \(11, 3\)"):
        ops.recurrence(z, weight[:11], bias, spectrum, d)
    with pytest.raises(ValueError, match=r"bias must be \(12,\) .*got \(11,\)"):
        ops.recurrence(z, weight, bias[:11], spectrum, d)
    with pytest.raises(ValueError, match=r"z_bias must be \(12,\) .*got \(4,\)"):
        ops.recurrence(z, weight, bias, spectrum, d, z_bias=bias[:4])
    with pytest.raises(ValueError, match=r"4 channels cannot share 3 filters"):
        ops.recurrence(z, weight, bias, ops.filter_spectrum(torch.zeros(1, 7, 3), 8), d)
    with pytest.raises(ValueError, match=r"a row of 9 positions needs .* built for 8"):
        ops.recurrence(torch.zeros(2, 9, 12), weight, bias, spectrum, d)
    with pytest.raises(
        ValueError, match=r"\(\.\.\., G, P \+ 1, 2\)|torch.float64 tensor of shape .* got torch.float32"
    ):
        ops.recurrence(z.double(), weight, bias, spectrum, d)
    with pytest.raises(ValueError, match=r"mask must be a bool tensor of shape \(2, 7\).*\(7, 2\)"):
        ops.recurrence(z, weight, bias, spectrum, d, torch.ones(7, 2, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"a row of 9 positions, more than the 8"):
        ops.recurrence(torch.zeros(1, 12, 12), weight, bias, spectrum, d, cu_seqlens=offsets([9, 3]))


@pytest.mark.parametrize("name", ["weight", "bias", "d", "mask", "z_bias"])
def test_everything_is_on_one_device(name: str) -> None:
    """A kernel is handed addresses: one of another device would be read as if it were its own."""
    x = place(inputs(2, 7, 4, mask="random", z_bias=True), Tier("any", "cpu"), torch.float32)
    spectrum = ops.filter_spectrum(x.pop("h"), 8)
    x[name] = x[name].to("meta")
    with pytest.raises(ValueError, match=rf"{name} is on meta, but the input on cpu"):
        ops.recurrence(**x, spectrum=spectrum)


@pytest.mark.parametrize("poison", [torch.nan, torch.inf])
def test_gradients_of_padding_do_not_spread(tier: Tier, poison: float) -> None:
    """Whatever they are: nothing that is kept changes with them, in any layout and order."""
    check_gradients_of_padding(convolve, RECURRENCES, tier, poison)
