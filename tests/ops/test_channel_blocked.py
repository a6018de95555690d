"""Mixing steps of sequences in channel blocks, ``(B, C / 16, L, 16)``."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from helpers import gated_conv, recurrence
from helpers.blocks import PLACES, in_blocks, of_cpu
from helpers.cases import ANY_LENGTH, DTYPES, LAYOUTS, MASKS, Tier, compare, offsets, place, rand
from hyena import ops
from hyena.ops._layout import from_blocks, to_blocks

HYENA = torch.ops.hyena
LENGTHS = [1, 2, 3, 5, 17, 130, 300, 700]


@pytest.fixture
def host(tier: Tier) -> Tier:
    """The tiers that know sections, and one way of applying few taps."""
    if tier.name == "cuda":
        pytest.skip("a GPU's kernels have no sections")
    return tier


def on_blocks(fn: Callable[..., Tensor], where: str = "contiguous") -> Callable[..., Tensor]:
    """A mixing step that puts ``z`` into channel blocks, and takes the result out of them."""

    def call(z: Tensor, *rest: Any, **more: Any) -> Tensor:
        y = fn(in_blocks(z, where) if where == "view" else to_blocks(z).contiguous(), *rest, **more)
        assert y.dim() == 4
        assert y.is_contiguous()
        return from_blocks(y)

    return call


def same_bits(op: str, dy: Tensor, z: Tensor, rest: tuple, where: str = "contiguous") -> None:
    """Output and gradients of a mixing step, of ``z`` (B, L, C) and of the same in channel blocks."""
    forward, backward = getattr(HYENA, op), getattr(HYENA, f"{op}_backward")
    y, got = forward(z, *rest), forward(in_blocks(z, where), *rest)
    assert got.is_contiguous()
    assert torch.equal(from_blocks(got), y)
    want = backward(dy, z, *rest)
    found = backward(in_blocks(dy, where), in_blocks(z, where), *rest)
    assert found[0].is_contiguous()
    for i, (g, w) in enumerate(zip((from_blocks(found[0]), *found[1:]), want, strict=True)):
        assert g.dtype == w.dtype
        assert torch.equal(g, w), f"output {i}: {(g - w).abs().max()}"


def arguments(x: dict, op: str = "recurrence", sectioned: int = 0, causal: bool = True) -> tuple[Tensor, tuple]:
    """``z`` and the rest of the call of an op; ``sectioned`` is the size of a section."""
    z, h, d = x["z"], x["h"], x["d"]
    if op == "direct_recurrence":
        first, last = (x["weight"], x["bias"], h[0], d[0]), causal
    else:
        size = sectioned or ops.transform_length(z.size(1))
        first, last = (x["weight"], x["bias"], ops.filter_spectrum(h, size, causal), d), sectioned > 0
    return z, (*first, x.get("mask"), x.get("cu_seqlens"), x.get("z_bias"), last)


def floats(dtype: torch.dtype) -> dict[str, torch.dtype]:
    return {"h": torch.promote_types(dtype, torch.float32)}


KINDS: dict[str, dict[str, Any]] = {
    "order-1": {"order": 1, "value_filter": True},
    "order-1-without-filters": {"order": 1},
    "order-2": {"mask": "random"},
    "order-3": {"order": 3, "mask": "left", "z_bias": True},
    "shared": {"groups": 4, "short": 5},
    "shared-by-blocks": {"groups": 2, "short": 1, "z_bias": True},
    "two-sided": {"causal": False, "mask": "empty_row"},
}


@pytest.mark.parametrize("dtype", DTYPES[:3], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_recurrences_give_the_bits_of_rows(host: Tier, kind: str, dtype: torch.dtype) -> None:
    given = KINDS[kind]
    for length in LENGTHS if host.name == "cpu" else LENGTHS[:6]:
        x = place(recurrence.inputs(2, length, 32, **given), host, dtype, **floats(dtype))
        dy = rand(2, length, 32, seed=9).to(dtype)
        with host():
            same_bits("recurrence", dy, *arguments(x, causal=given.get("causal", True)))


@of_cpu
@pytest.mark.parametrize("dtype", DTYPES[:3], ids=str)
@pytest.mark.parametrize("z_bias", [False, True])
def test_packed_and_sectioned_rows_give_the_bits_of_rows(host: Tier, dtype: torch.dtype, z_bias: bool) -> None:
    for sizes in ([1, 0, 16], [40, 90], [130, 3, 167]):
        x = recurrence.inputs(1, sum(sizes), 48, taps=min(20, sum(sizes)), groups=3, mask="random", z_bias=z_bias)
        x["cu_seqlens"] = offsets(sizes)
        x, dy = place(x, host, dtype, **floats(dtype)), rand(1, sum(sizes), 48, seed=9).to(dtype)
        with host():
            same_bits("recurrence", dy, *arguments(x))
            same_bits("recurrence", dy, *arguments(x, sectioned=ops.transform_length(32)))
            same_bits("direct_recurrence", dy, *arguments(x, "direct_recurrence"))
    for length in (17, 130, 300):
        x = place(recurrence.inputs(3, length, 16, order=3, taps=9, z_bias=z_bias), host, dtype, **floats(dtype))
        with host():
            same_bits("recurrence", rand(3, length, 16).to(dtype), *arguments(x, sectioned=ops.transform_length(12)))


@pytest.mark.parametrize("dtype", DTYPES[:3], ids=str)
@pytest.mark.parametrize("order", [1, 2])
def test_direct_recurrences_give_the_bits_of_rows(host: Tier, order: int, dtype: torch.dtype) -> None:
    for i, length in enumerate(LENGTHS if host.name == "cpu" else LENGTHS[:6]):
        for causal in (True, False):
            kind = {"short": (1, 3, 5)[i % 3], "mask": MASKS[i % 5], "z_bias": i % 2 == 1, "groups": (1, 4, 32)[i % 3]}
            x = recurrence.inputs(2, length, 32, order=order, value_filter=order == 1, taps=7, causal=causal, **kind)
            x, dy = place(x, host, dtype, **floats(dtype)), rand(2, length, 32, seed=9).to(dtype)
            with host():
                same_bits("direct_recurrence", dy, *arguments(x, "direct_recurrence", causal=causal))


@pytest.mark.parametrize("where", PLACES)
@pytest.mark.parametrize("dtype", DTYPES[:3], ids=str)
def test_blocks_anywhere_in_memory(host: Tier, dtype: torch.dtype, where: str) -> None:
    for length, z_bias in ((1, False), (37, True), (300, False)):
        x = recurrence.inputs(3, length, 32, taps=min(length, 9), mask="right", z_bias=z_bias)
        x, dy = place(x, host, dtype, **floats(dtype)), rand(3, length, 32, seed=9).to(dtype)
        with host():
            for op in ("recurrence", "direct_recurrence"):
                same_bits(op, dy, *arguments(x, op), where=where)


@given(data=st.data())
def test_any_recurrence(tier: Tier, data: st.DataObject) -> None:
    draw = data.draw
    order, value_filter = draw(st.sampled_from([(1, True), (2, False), (2, True), (3, False)]))
    causal, dtype = draw(st.booleans()), draw(st.sampled_from(DTYPES))
    batch, length = draw(st.integers(1, 3)), draw(ANY_LENGTH)
    channels = draw(st.sampled_from([16, 32, 48, 80]))
    kind = {"order": order, "value_filter": value_filter, "causal": causal}
    kind |= {"taps": draw(st.integers(1, length)), "groups": draw(st.sampled_from([1, 4, 16, channels]))}
    x = recurrence.inputs(batch, length, channels, **kind, **draw(recurrence.small_parts()))
    few, where = order + value_filter == 2 and draw(st.booleans()), draw(st.sampled_from(["contiguous", "view"]))
    fn = on_blocks(partial(recurrence.mix if few else recurrence.convolve, causal=causal, **_room(few, length)), where)
    want, wide = partial(recurrence.matrices, order=order, causal=causal), torch.promote_types(dtype, torch.float32)
    dy, layouts = rand(batch, length, channels) / 16, {"z": draw(st.sampled_from(LAYOUTS[:-1]))}
    allowed = gated_conv.direct_errors(dtype) if few else None
    compare(fn, want, x, dy, tier, dtype, layouts, ordered=False, allowed=allowed, h=wide)


def _room(few: bool, length: int) -> dict[str, int]:
    """For :func:`recurrence.convolve`, which takes the length of ``z`` from where (B, L, C) has it."""
    return {} if few else {"size": ops.transform_length(length)}


def derivable() -> dict[str, tuple[Callable, list[Tensor]]]:
    """Small calls of every mixing step."""
    z, dy = to_blocks(rand(1, 3, 32)).contiguous(), to_blocks(rand(1, 3, 16)).contiguous()
    weight, bias = rand(32, 2, seed=1), rand(32, seed=2)
    taps, d, mask = rand(1, 3, 1, seed=3), rand(1, 16, seed=4), torch.tensor([[True, False, True]])

    def spectrum(h: Tensor) -> Tensor:
        return ops.filter_spectrum(h, 3)

    def at(t: Tensor) -> Tensor:
        return mask.to(t.device)

    return {
        "recurrence": (
            lambda z, w, b, h, d, zb: ops.recurrence(z, w, b, spectrum(h), d, at(z), None, zb),
            [z, weight, bias, taps, d, bias + 1],
        ),
        "recurrence_backward": (
            lambda dy, z, h, d: HYENA.recurrence_backward(
                dy, z, weight.to(z), bias.to(z), spectrum(h), d, at(z), None, None, False
            )[0],
            [dy, z, taps, d],
        ),
        "direct_recurrence": (
            lambda z, w, b, h, d: ops.direct_recurrence(z, w, b, h[0], d[0], at(z)),
            [z, weight, bias, taps, d],
        ),
    }


@pytest.mark.parametrize("name", derivable())
def test_gradgradcheck(tier: Tier, name: str) -> None:
    fn, given = derivable()[name]
    leaves = [t.clone().to(tier.device).requires_grad_() for t in given]
    with tier():
        assert torch.autograd.gradcheck(fn, leaves)
        # Of all derivatives at once, in a random direction.
        assert torch.autograd.gradgradcheck(fn, leaves, fast_mode=True)


@pytest.mark.parametrize("op", ["recurrence", "direct_recurrence"])
@pytest.mark.parametrize("z_bias", [False, True])
def test_opcheck_of_mixing(device: str, op: str, z_bias: bool) -> None:
    x = place(recurrence.inputs(2, 6, 16, taps=3, mask="random", z_bias=z_bias), Tier("any", device), torch.float32)
    z, rest = arguments(x, op)
    z, dy = in_blocks(z), in_blocks(rand(2, 6, 16).float().to(device))
    torch.library.opcheck(getattr(HYENA, f"{op}_backward").default, (dy, z, *rest))
    leaves = [t.requires_grad_() if isinstance(t, Tensor) and t.is_floating_point() else t for t in (z, *rest)]
    torch.library.opcheck(getattr(HYENA, op).default, tuple(leaves))


@pytest.mark.parametrize("op", ["recurrence", "direct_recurrence"])
@pytest.mark.parametrize("checked", [True, False], ids=["function", "op"])
def test_errors_of_mixing_name_the_numbers(host: Tier, op: str, checked: bool) -> None:
    """Of the function and of the op itself."""
    call, backward = getattr(ops if checked else HYENA, op), getattr(HYENA, f"{op}_backward")

    def raises(match: str, fn: Callable[..., Any], *args: Any) -> None:
        with host(), pytest.raises(ValueError, match=match):
            fn(*args)

    with host():
        x = place(recurrence.inputs(2, 7, 16, taps=3, mask="random"), host, torch.float32)
        rows, rest = arguments(x, op)
        eight = arguments(place(recurrence.inputs(2, 7, 8, taps=3), host, torch.float32), op)[1]
        shorter = list(rest)
        shorter[4] = shorter[4][:, :6]
    z, dy = in_blocks(rows), in_blocks(torch.zeros(2, 7, 16))
    raises(r"z must.*16\).*got .*\(2, 3, 7, 8\)", call, z[..., :8], *rest)
    raises(r"z must.*16\).*got .*\(2, 3, 7, 17\)", call, torch.zeros(2, 3, 7, 17), *rest)
    # 3 x 8 channels; and an order of 5, of which each part has 8.
    raises(r"z of 32 channels", call, z[:, :2].contiguous(), *eight)
    raises(r"mask must.*\(2, 7\).*got .*\(2, 6\)", call, z, *shorter)
    raises(r"z of 32 channels", call, z[:, :2], *rest[:3], rest[3].new_zeros(rest[3].shape[:-1] + (13,)), *rest[4:])
    for wrong in (torch.zeros(2, 7, 16), dy[:, :, :6], torch.zeros(2, 2, 7, 16), dy[:1]):
        raises(r"dy must.*\(2, 1, 7, 16\).*got ", backward, wrong, z, *rest)
    raises(r"dy must.*\(2, 7, 16\).*got .*\(2, 1, 7, 16\)", backward, dy, rows, *rest)


@pytest.mark.parametrize("op", ["recurrence", "direct_recurrence"])
def test_blocks_must_not_be_shared_by_parts(host: Tier, op: str) -> None:
    """A gate and a value of 24 channels fill three blocks, but not each its own."""
    x = place(recurrence.inputs(1, 7, 24, order=1, value_filter=True, taps=3), host, torch.float32)
    with host():
        rest = arguments(x, op)[1]
        for fn, dy in ((getattr(HYENA, op), ()), (getattr(HYENA, f"{op}_backward"), (torch.zeros(1, 1, 7, 16),))):
            with pytest.raises(ValueError, match=r"\b24 channels.*(\b16\b|multiple)"):
                fn(*dy, torch.zeros(1, 3, 7, 16), *rest)


def test_an_empty_batch(tier: Tier) -> None:
    for op in (recurrence.convolve, recurrence.mix):
        x = recurrence.inputs(0, 9, 16, taps=3, z_bias=True)
        more = {} if op is recurrence.mix else {"size": 9}
        want = partial(recurrence.matrices, order=2)
        compare(on_blocks(partial(op, **more)), want, x, rand(0, 9, 16), tier, torch.float32, ordered=False)


def test_anomalies_are_found_in_blocks(tier: Tier) -> None:
    x = place(recurrence.inputs(1, 9, 16, taps=3, mask="right"), tier, torch.float32)
    x["mask"][:] = torch.arange(9, device=tier.device) < 6
    with tier():
        z, rest = arguments(x)
        z[0, 7] = torch.nan
        with torch.autograd.detect_anomaly(check_nan=True):
            assert ops.recurrence(in_blocks(z), *rest).isfinite().all()
            z[0, 3, 20] = torch.nan
            with pytest.raises(RuntimeError, match=r"z.*nan.*\(0, 3, 20\)"):
                ops.recurrence(in_blocks(z), *rest)


@pytest.mark.parametrize("poison", [torch.nan, torch.inf])
def test_padding_reaches_nothing(tier: Tier, poison: float) -> None:
    for fn in (recurrence.convolve, recurrence.mix):
        x = place(recurrence.inputs(2, 40, 16, taps=9, mask="random", z_bias=True), tier, torch.float32)
        hidden, found = ~x["mask"][..., None], []
        more = {} if fn is recurrence.mix else {"size": 40}
        for value in (0.0, poison):
            given = {**x, "z": torch.where(hidden, value, x["z"])}
            leaves = {n: t.requires_grad_() for n, t in given.items() if t.is_floating_point()}
            dy = torch.where(hidden, value, rand(2, 40, 16).float().to(tier.device))
            with tier():
                y = on_blocks(partial(fn, **more))(**{**given, **leaves})
                found.append([y, *torch.autograd.grad(y, list(leaves.values()), dy)])
        for clean, dirty in zip(*found, strict=True):
            assert torch.equal(clean, dirty)
