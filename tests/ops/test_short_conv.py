"""``hyena::short_conv`` against explicit Toeplitz matrices."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from helpers import oracle
from helpers.cases import (
    DTYPES,
    LAYOUTS,
    LENGTHS,
    MASKS,
    Tier,
    compare,
    laid_out,
    offsets,
    place,
    rand,
    rows_of,
)
from helpers.short_conv import inputs
from hyena import ops


@pytest.mark.parametrize("mask", ["none", "random"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("length", LENGTHS)
def test_lengths(tier: Tier, dtype: torch.dtype, length: int, mask: str) -> None:
    compare(ops.short_conv, oracle.short_conv, inputs(2, length, 3, 3, mask=mask), rand(2, length, 3), tier, dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(tier: Tier, dtype: torch.dtype, layout: str) -> None:
    for dy in ("contiguous", "channel_major", "expanded") if layout != "expanded" else ("sliced",):
        g = laid_out(rand(3, 19, 10), dy)
        compare(
            ops.short_conv,
            oracle.short_conv,
            inputs(3, 19, 10, 3, mask="right"),
            g,
            tier,
            dtype,
            {"z": layout, "dy": dy},
        )


@given(data=st.data())
def test_anything(tier: Tier, data: st.DataObject) -> None:
    batch, channels = data.draw(st.integers(1, 3)), data.draw(st.sampled_from([1, 2, 3, 7, 8, 9, 16, 17, 33]))
    length, taps = data.draw(st.integers(1, 70)), data.draw(st.integers(1, 7))
    dtype = data.draw(st.sampled_from(DTYPES))
    layouts = {"z": data.draw(st.sampled_from(LAYOUTS)), "dy": data.draw(st.sampled_from(LAYOUTS))}
    x = inputs(batch, length, channels, taps, bias=data.draw(st.booleans()), mask=data.draw(st.sampled_from(MASKS)))
    weights = data.draw(st.sampled_from([dtype, torch.float64 if dtype == torch.float64 else torch.float32]))
    dy = laid_out(rand(batch, length, channels), layouts["dy"])
    compare(ops.short_conv, oracle.short_conv, x, dy, tier, dtype, layouts, weight=weights, bias=weights)


@given(data=st.data())
def test_packed_rows(tier: Tier, data: st.DataObject) -> None:
    sizes = data.draw(st.lists(st.integers(0, 40), min_size=1, max_size=6).filter(sum))
    dtype, at = data.draw(st.sampled_from(DTYPES)), data.draw(st.sampled_from([torch.int32, torch.int64]))
    channels = data.draw(st.sampled_from([1, 5, 8]))
    x = inputs(1, sum(sizes), channels, data.draw(st.integers(1, 4)), mask=data.draw(st.sampled_from(MASKS[:-1])))
    x["cu_seqlens"] = offsets(sizes, at)

    def packed(cu_seqlens: Tensor, **given: Tensor) -> Tensor:
        return oracle.short_conv(**given, rows=rows_of(cu_seqlens))

    layouts = {"z": data.draw(st.sampled_from(LAYOUTS))}
    compare(ops.short_conv, packed, x, rand(1, sum(sizes), channels), tier, dtype, layouts)


def test_an_empty_batch(tier: Tier) -> None:
    compare(ops.short_conv, oracle.short_conv, inputs(0, 9, 4, 3), rand(0, 9, 4), tier, torch.float32)


def test_the_last_tap_is_the_current_position(tier: Tier) -> None:
    z = torch.tensor([1.0, 10.0, 100.0], device=tier.device)[None, :, None]
    weight = torch.tensor([[3.0, 2.0, 1.0]], device=tier.device)
    with tier():
        assert ops.short_conv(z, weight).flatten().tolist() == [1.0, 12.0, 123.0]


@pytest.mark.parametrize("poison", [torch.nan, torch.inf])
def test_what_stands_in_the_padding_does_not_matter(tier: Tier, poison: float) -> None:
    x = place(inputs(2, 9, 4, 3, mask="random"), tier, torch.float32)
    dirty = {**x, "z": torch.where(x["mask"][..., None], x["z"], poison)}
    with tier():
        z, z_dirty = x["z"].requires_grad_(), dirty["z"].requires_grad_()
        clean, dirty_y = ops.short_conv(**x), ops.short_conv(**dirty)
        assert torch.equal(clean, dirty_y)
        (g,) = torch.autograd.grad(clean.square().sum(), z)
        (g_dirty,) = torch.autograd.grad(dirty_y.square().sum(), z_dirty)
        assert torch.equal(g, g_dirty)
        assert not g[~x["mask"]].any()
    assert not clean[~x["mask"]].any()


def test_nan_gradients_of_padding_do_not_spread(tier: Tier) -> None:
    x = place(inputs(2, 9, 4, 3, mask="random"), tier, torch.float32)
    with tier():
        z = x["z"].requires_grad_()
        dy = torch.where(x["mask"][..., None], torch.ones_like(z), torch.nan)
        (g,) = torch.autograd.grad(ops.short_conv(**x), z, dy)
    assert g.isfinite().all()


def test_an_infinite_gradient_stays_infinite(tier: Tier) -> None:
    """In sums over positions: not a number would be another fault than an overflow, and name another place."""
    x = place(inputs(1, 50, 4, 3), tier, torch.float32)
    dy = torch.ones(1, 50, 4, device=tier.device)
    dy[0, 7, 1] = torch.inf
    with tier():
        _, _, db = torch.ops.hyena.short_conv_backward(dy, x["z"], x["weight"], None, None)
    assert db.tolist() == [50.0, torch.inf, 50.0, 50.0]


def test_gradgradcheck(tier: Tier) -> None:
    x = place(inputs(2, 5, 3, 3, mask="random"), tier, torch.float64)
    mask = x.pop("mask")
    leaves = tuple(t.requires_grad_() for t in x.values())
    with tier():
        assert torch.autograd.gradcheck(lambda *a: ops.short_conv(*a, mask), leaves)
        assert torch.autograd.gradgradcheck(lambda *a: ops.short_conv(*a, mask), leaves)


@pytest.mark.parametrize(
    ("bias", "mask", "layout"),
    [(True, "random", "contiguous"), (True, "random", "channel_major"), (False, "none", "sliced")],
)
def test_opcheck(device: str, bias: bool, mask: str, layout: str) -> None:
    x = place(inputs(2, 6, 4, 3, bias=bias, mask=mask), Tier("any", device), torch.float32, {"z": layout})
    leaves = [t.requires_grad_() if t is not None and t.is_floating_point() else t for t in x.values()]
    torch.library.opcheck(torch.ops.hyena.short_conv.default, (*leaves, None))
    dy = torch.ones_like(leaves[0])
    torch.library.opcheck(torch.ops.hyena.short_conv_backward.default, (dy, *leaves[:2], leaves[3], None))


def test_opcheck_packed(device: str) -> None:
    x = place(inputs(1, 6, 4, 3), Tier("any", device), torch.float32, {"z": "channel_major"})
    leaves = [t.requires_grad_() for t in x.values() if t is not None]
    torch.library.opcheck(torch.ops.hyena.short_conv.default, (*leaves, None, offsets([4, 0, 2]).to(device)))


def test_a_wide_bias_beside_narrow_weights_has_a_wide_gradient(tier: Tier) -> None:
    """Its sum over 70,000 positions is beyond float16."""
    z, weight = (torch.ones(s, dtype=torch.float16, device=tier.device) for s in ((1, 70000, 2), (2, 3)))
    bias = torch.zeros(2, device=tier.device, requires_grad=True)
    with tier():
        ops.short_conv(z, weight.requires_grad_(), bias).sum(dtype=torch.float32).backward()
        assert bias.grad.tolist() == [70000.0, 70000.0]
        assert weight.grad.dtype == torch.float16
        bias.grad = None
        spectrum = ops.filter_spectrum(torch.zeros(0, 3, 1, device=tier.device), ops.transform_length(70000))
        d = torch.zeros(0, 1, device=tier.device)
        ones = torch.ones(1, 70000, 2, dtype=torch.float16, device=tier.device)
        rest = spectrum, d, None, None, None, False
        torch.ops.hyena.recurrence_backward(ones[..., :1], ones, weight.detach(), bias, *rest)
        y = ops.recurrence(ones, weight, bias + 1, spectrum, d)
        (found,) = torch.autograd.grad(y, bias, torch.ones_like(y))
    assert found.isfinite().all()
    assert found.abs().max() > 65504


def test_errors_name_the_numbers() -> None:
    z, weight = torch.zeros(2, 7, 4), torch.zeros(4, 3)
    with pytest.raises(ValueError, match=r"\(B, L, C\), got torch.float32 of shape \(7, 4\)"):
        ops.short_conv(z[0], weight)
    with pytest.raises(ValueError, match=r"floating point.*torch.int64 of shape \(2, 7, 4\)"):
        ops.short_conv(z.long(), weight)
    with pytest.raises(ValueError, match=r"weight must be \(4, taps\) for an input of shape \(2, 7, 4\), got \(5, 3\)"):
        ops.short_conv(z, torch.zeros(5, 3))
    with pytest.raises(ValueError, match=r"weight must be \(4, taps\).*got \(4, 0\)"):
        ops.short_conv(z, torch.zeros(4, 0))
    with pytest.raises(ValueError, match=r"bias must be \(4,\) .*got \(3,\)"):
        ops.short_conv(z, weight, torch.zeros(3))
    for name in ("weight", "bias", "mask"):
        there = {"weight": torch.zeros(4, 3), "bias": torch.zeros(4), "mask": torch.ones(2, 7, dtype=torch.bool)}
        there[name] = there[name].to("meta")
        with pytest.raises(ValueError, match=rf"{name} is on meta, but the input on cpu"):
            ops.short_conv(torch.zeros(2, 7, 4), **there)
    with pytest.raises(ValueError, match=r"mask must be a bool tensor of shape \(2, 7\).*torch.bool of shape \(2, 8\)"):
        ops.short_conv(z, weight, None, torch.ones(2, 8, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"mask must be a bool tensor.*torch.float32 of shape \(2, 7\)"):
        ops.short_conv(z, weight, None, torch.ones(2, 7))
    with pytest.raises(ValueError, match=r"\(1, T, C\); got batch 2 with cu_seqlens"):
        ops.short_conv(z, weight, None, None, offsets([7]))
