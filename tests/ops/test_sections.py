"""Rows convolved in sections, ``sectioned=True`` of ``gated_conv`` and ``recurrence``, against explicit matrices."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from helpers import gated_conv, recurrence
from helpers.cases import DTYPES, LAYOUTS, MASKS, Tier, compare, laid_out, offsets, place, rand
from hyena import functional, ops

RECURRENCES = [(1, True), (2, False), (2, True), (3, False), (4, True)]


@pytest.fixture(autouse=True)
def of_tiers_with_sections(request: pytest.FixtureRequest) -> None:
    if "tier" in request.fixturenames and request.getfixturevalue("tier").name == "cuda":
        pytest.skip("kernels for GPUs take whole rows, see test_gated_conv.py")


@st.composite
def sizes_of(draw: st.DrawFn) -> tuple[int, int, int]:
    """Positions, taps, and positions of a section."""
    length = draw(st.integers(1, 140))
    taps = draw(st.integers(1, 40))
    return length, taps, ops.transform_length(taps + draw(st.sampled_from([0, 1, 20])))


@given(data=st.data())
def test_any_gated_conv(tier: Tier, data: st.DataObject) -> None:
    length, taps, size = data.draw(sizes_of())
    groups, width = data.draw(st.sampled_from([1, 2, 3, 8, 17])), data.draw(st.sampled_from([1, 1, 2, 5]))
    batch, channels, dtype = data.draw(st.integers(1, 3)), groups * width, data.draw(st.sampled_from(DTYPES))
    gates = data.draw(st.sampled_from(["", "d", "pre", "post", "d pre", "d post", "pre post", "d pre post"]))
    x = gated_conv.inputs(batch, length, channels, taps, groups, gates=gates)
    layouts = {name: data.draw(st.sampled_from(LAYOUTS[:-1])) for name in ("v", "pre", "post", "dy")}
    fn = partial(gated_conv.convolve, size=size, sectioned=True)
    wide = torch.promote_types(dtype, torch.float32)
    compare(fn, gated_conv.matrices, x, rand(batch, length, channels), tier, dtype, layouts, h=wide)


@given(data=st.data())
def test_any_recurrence(tier: Tier, data: st.DataObject) -> None:
    length, taps, size = data.draw(sizes_of())
    order, value_filter = data.draw(st.sampled_from(RECURRENCES))
    groups, width = data.draw(st.sampled_from([1, 2, 3, 8, 17])), data.draw(st.sampled_from([1, 1, 2, 5]))
    batch, dtype = data.draw(st.integers(1, 3)), data.draw(st.sampled_from(DTYPES))
    kind = {"order": order, "value_filter": value_filter, "taps": taps, "groups": groups}
    x = recurrence.inputs(batch, length, groups * width, **kind, **data.draw(recurrence.small_parts()))
    layouts = {"z": data.draw(st.sampled_from(LAYOUTS[:-1])), "dy": data.draw(st.sampled_from(LAYOUTS[:-1]))}
    fn = partial(recurrence.convolve, size=size, sectioned=True)
    dy = rand(batch, length, groups * width) / 16  # or sums of order 4 leave float16's range
    wide = torch.promote_types(dtype, torch.float32)
    compare(fn, partial(recurrence.matrices, order=order), x, dy, tier, dtype, layouts, h=wide)


@given(data=st.data())
def test_packed_rows(tier: Tier, data: st.DataObject) -> None:
    sizes = data.draw(st.lists(st.integers(0, 70), min_size=1, max_size=6).filter(sum))
    _, taps, size = data.draw(sizes_of())
    at = offsets(sizes, data.draw(st.sampled_from([torch.int32, torch.int64])))
    order, value_filter = data.draw(st.sampled_from(RECURRENCES))
    dy = laid_out(rand(1, sum(sizes), 4), data.draw(st.sampled_from(LAYOUTS)))
    more = {"size": size, "sectioned": True}
    x = gated_conv.inputs(1, sum(sizes), 4, taps, 2) | {"cu_seqlens": at}
    compare(partial(gated_conv.convolve, **more), gated_conv.matrices, x, dy, tier, torch.float32)
    mask = data.draw(st.sampled_from(MASKS[:-1]))
    x = recurrence.inputs(1, sum(sizes), 4, order=order, value_filter=value_filter, taps=taps, mask=mask)
    x["cu_seqlens"] = at
    want = partial(recurrence.matrices, order=order)
    compare(partial(recurrence.convolve, **more), want, x, dy / 16, tier, torch.float32)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("length", "taps"), [(1100, 300), (5000, 2100)])
def test_sections_of_columns_and_rows(tier: Tier, dtype: torch.dtype, length: int, taps: int) -> None:
    """Sections of some length are transformed in two levels, by whatever instructions."""
    more, wide = {"size": ops.transform_length(taps), "sectioned": True}, torch.promote_types(dtype, torch.float32)
    x = gated_conv.inputs(1, length, 2, taps, 2)
    compare(partial(gated_conv.convolve, **more), gated_conv.matrices, x, rand(1, length, 2), tier, dtype, h=wide)
    x = recurrence.inputs(1, length, 2, order=3, taps=taps, mask="random")
    want = partial(recurrence.matrices, order=3)
    compare(partial(recurrence.convolve, **more), want, x, rand(1, length, 2) / 16, tier, dtype, h=wide)


def test_gradgradcheck(tier: Tier) -> None:
    x = place(gated_conv.inputs(2, 7, 2, 3, 1), tier, torch.float64)
    with tier():
        fn = partial(gated_conv.convolve, size=3, sectioned=True)
        leaves = tuple(t.requires_grad_() for t in x.values())
        assert torch.autograd.gradcheck(fn, leaves)
        assert torch.autograd.gradgradcheck(fn, leaves)
    x = place(recurrence.inputs(1, 7, 2, order=3, taps=3, groups=1), tier, torch.float64)
    z, weight, bias, h, d = (x[name].requires_grad_() for name in ("z", "weight", "bias", "h", "d"))
    with tier():
        fn = partial(recurrence.convolve, size=3, sectioned=True)
        assert torch.autograd.gradcheck(fn, (z, weight, bias, h, d))
        assert torch.autograd.gradgradcheck(fn, (z, weight, bias, h, d))


def test_opcheck() -> None:
    spectrum = ops.filter_spectrum(rand(1, 5, 4).float(), 5)
    v = rand(2, 13, 4).float().requires_grad_()
    torch.library.opcheck(torch.ops.hyena.gated_conv.default, (v, spectrum[0], None, v, None, None, True))
    z, weight, d = rand(2, 13, 12).float().requires_grad_(), rand(12, 3).float(), rand(1, 4).float()
    torch.library.opcheck(torch.ops.hyena.recurrence.default, (z, weight, None, spectrum, d, None, None, None, True))


def test_no_output_sees_a_later_section(tier: Tier) -> None:
    """Bit by bit: what comes in later sections is in no sum of the earlier ones."""
    x = place(gated_conv.inputs(2, 100, 3, 16, 3), tier, torch.float32)
    loud = {**x, "v": torch.cat([x["v"][:, :64], x["v"][:, 64:] * 1e30], dim=1)}
    with tier():
        y, other = (gated_conv.convolve(**given, size=16, sectioned=True) for given in (x, loud))
    assert torch.equal(y[:, :64], other[:, :64])


@pytest.mark.parametrize("poison", [torch.nan, torch.inf])
def test_gradients_of_padding_do_not_matter(tier: Tier, poison: float) -> None:
    call = partial(recurrence.convolve, size=9, sectioned=True)
    recurrence.check_gradients_of_padding(call, RECURRENCES, tier, poison)


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_threads_change_nothing(threads: int) -> None:
    """One channel group or many, the sums are the same, bit by bit."""
    x = recurrence.inputs(2, 300, 40, taps=20, mask="random")
    leaves = [t.float().requires_grad_() for name, t in x.items() if name != "mask"]

    def run() -> list[Tensor]:
        y = recurrence.convolve(*leaves, x["mask"], size=20, sectioned=True)
        return [y, *torch.autograd.grad(y.square().sum(), leaves)]

    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        want = run()
        torch.set_num_threads(threads)
        got = run()
    finally:
        torch.set_num_threads(before)
    for a, b in zip(want, got, strict=True):
        assert torch.equal(a, b)


def test_long_rows_without_sections_are_refused() -> None:
    v, spectrum = torch.zeros(1, 20, 4), ops.filter_spectrum(torch.zeros(1, 5, 4), 8)
    with pytest.raises(ValueError, match=r"a row of 20 positions needs.*built for 8"):
        ops.gated_conv(v, spectrum[0])
    assert ops.gated_conv(v, spectrum[0], sectioned=True).shape == v.shape


@pytest.mark.skipif(not ops.has_kernel("gated_conv", torch.device("cpu")), reason="no kernels")
def test_sections_are_chosen_where_filters_are_short(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    assert ops.section_length(200, 64, 4096, cpu) == 256
    assert ops.section_length(1500, 64, 4096, cpu) == 1536
    assert ops.section_length(3000, 64, 4096, cpu) is None  # two sections do not fit
    assert ops.section_length(64, 64, 4096, cpu) is None  # tap by tap
    assert ops.is_direct(64, 4096, cpu)
    assert ops.section_length(200, 64, 4096, torch.device("meta")) is None
    monkeypatch.setattr(torch, "get_num_threads", lambda: 16)
    assert ops.section_length(200, 64, 4096, cpu) is None  # more threads than two for each task


@pytest.mark.parametrize("taps", [150, 300])
def test_the_function_takes_sections(taps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    x = gated_conv.inputs(2, 1300, 3, taps, 3)
    y = functional.gated_conv(x["v"], x["h"], x["d"], x["pre"], x["post"])
    torch.testing.assert_close(y, gated_conv.matrices(**x), rtol=1e-12, atol=1e-12)
