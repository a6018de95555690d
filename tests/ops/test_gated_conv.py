"""``hyena::gated_conv`` (and ``hyena::filter_spectrum``, of which it takes the result) against explicit matrices."""

from __future__ import annotations

import sys
from functools import lru_cache, partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from helpers.cases import (
    ANY_LENGTH,
    DTYPES,
    LAYOUTS,
    LENGTHS,
    Judge,
    Tier,
    compare,
    laid_out,
    offsets,
    place,
    rand,
)
from helpers.gated_conv import convolve, inputs, matrices
from hyena import ops
from hyena.ops._extension import EXTENSION


@lru_cache
def judge_of_length(length: int, causal: bool) -> Judge:
    x = inputs(1, length, 2, length, 2, causal=causal)
    return Judge.of(partial(matrices, causal=causal), x, rand(1, length, 2))


@pytest.mark.parametrize("causal", [True, False], ids=["causal", "two-sided"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("length", LENGTHS)
def test_lengths(tier: Tier, dtype: torch.dtype, length: int, causal: bool) -> None:
    x = inputs(1, length, 2, length, 2, causal=causal)
    wide = torch.promote_types(dtype, torch.float32)
    judge = judge_of_length(length, causal)
    compare(partial(convolve, causal=causal), matrices, x, rand(1, length, 2), tier, dtype, judge=judge, h=wide)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("length", [1440, 2160, 2304])
def test_columns_without_an_eight(tier: Tier, dtype: torch.dtype, length: int) -> None:
    """Transforms in columns whose first radix is another one: 36, 45 and 48 points."""
    x = inputs(1, length, 2, length, 2)
    judge = judge_of_length(length, True)
    compare(convolve, matrices, x, rand(1, length, 2), tier, dtype, judge=judge)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(tier: Tier, dtype: torch.dtype, layout: str) -> None:
    x = inputs(3, 21, 10, 21, 5)
    for other in LAYOUTS[:4]:
        layouts = {"v": layout, "pre": other, "post": layout if layout != "expanded" else other, "dy": other}
        compare(convolve, matrices, x, rand(3, 21, 10), tier, dtype, layouts)


@given(data=st.data())
def test_anything(tier: Tier, data: st.DataObject) -> None:
    causal, dtype = data.draw(st.booleans()), data.draw(st.sampled_from(DTYPES))
    batch, length = data.draw(st.integers(1, 3)), data.draw(ANY_LENGTH)
    groups, width = data.draw(st.sampled_from([1, 2, 3, 8, 9])), data.draw(st.sampled_from([1, 1, 2, 5]))
    channels, taps = groups * width, data.draw(st.integers(1, length))
    gates = data.draw(st.sampled_from(["", "d", "pre", "post", "d pre", "d post", "pre post", "d pre post"]))
    x = inputs(batch, length, channels, taps, groups, causal=causal, gates=gates)
    layouts = {name: data.draw(st.sampled_from(LAYOUTS[:-1])) for name in ("v", "pre", "post", "dy")}
    weights = data.draw(st.sampled_from([dtype, torch.promote_types(dtype, torch.float32)]))
    fn = partial(convolve, causal=causal)
    dy = rand(batch, length, channels)
    compare(fn, partial(matrices, causal=causal), x, dy, tier, dtype, layouts, h=weights, d=weights)


@given(data=st.data())
def test_packed_rows(tier: Tier, data: st.DataObject) -> None:
    sizes = data.draw(st.lists(st.integers(0, 70), min_size=1, max_size=6).filter(sum))
    causal, dtype = data.draw(st.booleans()), data.draw(st.sampled_from(DTYPES))
    groups, gates = (
        data.draw(st.sampled_from([1, 2, 4])),
        data.draw(st.sampled_from(["", "d", "pre post", "d pre post"])),
    )
    taps = data.draw(st.integers(1, max(sizes)))
    x = inputs(1, sum(sizes), 4, taps, groups, causal=causal, gates=gates)
    x["cu_seqlens"] = offsets(sizes, data.draw(st.sampled_from([torch.int32, torch.int64])))
    layouts = {name: data.draw(st.sampled_from(LAYOUTS)) for name in ("v", "dy")}
    fn = partial(convolve, causal=causal, size=ops.transform_length(max(sizes)))
    dy = laid_out(rand(1, sum(sizes), 4), layouts["dy"])
    wide = torch.promote_types(dtype, torch.float32)
    compare(fn, partial(matrices, causal=causal), x, dy, tier, dtype, layouts, h=wide)


@pytest.mark.parametrize("causal", [True, False], ids=["causal", "two-sided"])
@pytest.mark.parametrize("size", [37, 64, 67, 96, 131])
def test_room_for_more_than_the_row(tier: Tier, size: int, causal: bool) -> None:
    """A spectrum serves every row up to its room, which need not be a fast length nor filled with taps."""
    x = inputs(2, 29, 3, 33, 3, causal=causal)
    fn = partial(convolve, causal=causal, size=size)
    compare(fn, partial(matrices, causal=causal), x, rand(2, 29, 3), tier, torch.float32)


def test_an_empty_batch(tier: Tier) -> None:
    compare(convolve, matrices, inputs(0, 9, 4, 9, 2), rand(0, 9, 4), tier, torch.float32)


def test_pieces_of_channels_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fallback does channels in turn when their transforms together would take too much memory."""
    monkeypatch.setattr(sys.modules["hyena.ops._rfft"], "_CHUNK", 100)
    tier = Tier("fallback", "cpu")
    compare(convolve, matrices, inputs(2, 29, 6, 29, 3), rand(2, 29, 6), tier, torch.float32)
    compare(convolve, matrices, inputs(2, 29, 6, 29, 6), rand(2, 29, 6), tier, torch.float32)


@pytest.mark.parametrize("causal", [True, False], ids=["causal", "two-sided"])
def test_gradgradcheck(tier: Tier, causal: bool) -> None:
    x = place(inputs(2, 5, 4, 4, 2, causal=causal), tier, torch.float64)
    leaves = tuple(t.requires_grad_() for t in x.values())
    with tier():
        assert torch.autograd.gradcheck(partial(convolve, causal=causal), leaves)
        assert torch.autograd.gradgradcheck(partial(convolve, causal=causal), leaves)


@pytest.mark.parametrize("gates", ["", "d", "pre", "d post"])
def test_gradgradcheck_without_some(tier: Tier, gates: str) -> None:
    x = place(inputs(1, 4, 2, 3, 1, gates=gates), tier, torch.float64)
    names = [name for name, t in x.items() if t is not None]
    leaves = tuple(x[name].requires_grad_() for name in names)
    with tier():
        assert torch.autograd.gradgradcheck(lambda *a: convolve(**dict(zip(names, a, strict=True))), leaves)


def test_gradgradcheck_packed(tier: Tier) -> None:
    x = place(inputs(1, 7, 2, 3, 1), tier, torch.float64)
    leaves = tuple(t.requires_grad_() for t in x.values())
    at = offsets([3, 0, 4]).to(tier.device)
    with tier():
        assert torch.autograd.gradcheck(lambda *a: convolve(*a, at), leaves)
        assert torch.autograd.gradgradcheck(lambda *a: convolve(*a, at), leaves)


@pytest.mark.parametrize(
    ("gates", "layout"),
    [("d pre post", "contiguous"), ("d pre post", "channel_major"), ("", "sliced"), ("post", "channel_major")],
)
def test_opcheck(device: str, gates: str, layout: str) -> None:
    layouts = {"v": layout, "pre": "contiguous", "post": layout}
    x = place(inputs(2, 6, 4, 6, 2, gates=gates), Tier("any", device), torch.float32, layouts)
    spectrum = ops.filter_spectrum(x.pop("h")[None], 6)[0]
    v, *others = (t if t is None else t.requires_grad_() for t in x.values())
    torch.library.opcheck(torch.ops.hyena.gated_conv.default, (v, spectrum.requires_grad_(), *others, None, False))
    arguments = [None if t is None else t.detach() for t in (torch.ones_like(v), v, spectrum, *others, None)] + [False]
    torch.library.opcheck(torch.ops.hyena.gated_conv_backward.default, arguments)


def test_opcheck_packed(device: str) -> None:
    x = place(inputs(1, 6, 4, 6, 2), Tier("any", device), torch.float32, {"v": "channel_major"})
    spectrum = ops.filter_spectrum(x.pop("h")[None], 6)[0].requires_grad_()
    v, *others = (t.requires_grad_() for t in x.values())
    at = offsets([4, 0, 2]).to(device)
    torch.library.opcheck(torch.ops.hyena.gated_conv.default, (v, spectrum, *others, at, False))


def test_kernels_of_gpus_refuse_sections(tier: Tier) -> None:
    if tier.name == "fallback" or (tier.name == "cpu" and EXTENSION.instructions != "emulated CUDA"):
        pytest.skip("takes sections, see test_sections.py")
    x = place(inputs(1, 9, 4, 4, 2), tier, torch.float32)
    with pytest.raises(ValueError, match="sectioned=True is for a CPU"):
        convolve(**x, size=4, sectioned=True)


def test_errors_name_the_numbers() -> None:
    v, spectrum = torch.zeros(2, 7, 6), ops.filter_spectrum(torch.zeros(1, 7, 3), 8)[0]
    with pytest.raises(ValueError, match=r"a row of 9 positions needs.*this one was built for 8"):
        ops.gated_conv(torch.zeros(2, 9, 6), spectrum)
    with pytest.raises(ValueError, match=r"7 channels cannot share 3 filters"):
        ops.gated_conv(torch.zeros(2, 7, 7), spectrum)
    with pytest.raises(ValueError, match=r"must be a torch.float64 tensor .* got torch.float32 of shape \(3, 9, 2\)"):
        ops.gated_conv(v.double(), spectrum)
    with pytest.raises(ValueError, match=r"on meta, as filter_spectrum makes it; got torch.float32 .* on cpu"):
        ops.gated_conv(v.to("meta"), spectrum)
    with pytest.raises(ValueError, match=r"\(G, P \+ 1, 2\), one filter's, .*got .* \(1, 3, 9, 2\)"):
        ops.gated_conv(v, spectrum[None])
    with pytest.raises(ValueError, match=r"pre must be torch.float32 of shape \(2, 7, 6\).*\(2, 7, 5\)"):
        ops.gated_conv(v, spectrum, None, v[..., :5])
    with pytest.raises(ValueError, match=r"post must be torch.float32 of shape \(2, 7, 6\), got torch.float16"):
        ops.gated_conv(v, spectrum, None, None, v.half())
    for name in ("d", "pre", "post"):
        there = {name: torch.zeros(6) if name == "d" else v}
        with pytest.raises(ValueError, match=rf"{name} is on meta, but the input on cpu"):
            ops.gated_conv(v, spectrum, **{k: t.to("meta") for k, t in there.items()})
    with pytest.raises(ValueError, match=r"d must be \(6,\) .*got \(5,\)"):
        ops.gated_conv(v, spectrum, torch.zeros(5))
    with pytest.raises(ValueError, match=r"a row of 9 positions, more than the 8 .* pass max_seqlen=9 or more"):
        ops.gated_conv(torch.zeros(1, 12, 6), spectrum, cu_seqlens=offsets([9, 3]))
