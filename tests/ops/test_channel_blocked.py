"""Sequences in channel blocks, ``(B, C / 16, L, 16)``: mixing steps on them, and the projections to and from them."""

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
from helpers.cases import ANY_LENGTH, DTYPES, LAYOUTS, MASKS, Tier, compare, offsets, place, rand
from hyena import ops
from hyena.ops._extension import EXTENSION
from hyena.ops._layout import from_blocks, to_blocks

HYENA = torch.ops.hyena
LENGTHS = [1, 2, 3, 5, 17, 130, 300, 700]
# How a sequence in blocks may lie in memory.
PLACES = ["contiguous", "view", "sliced", "skipping", "every_second", "offset", "batch_inside"]

of_cpu = pytest.mark.skipif(
    EXTENSION.instructions == "emulated CUDA", reason="sections and matrix products are of a CPU's kernels"
)


@pytest.fixture
def host(tier: Tier) -> Tier:
    """The tiers whose arithmetic is the same for both orders: a GPU's kernels hand channel blocks to the fallback."""
    if tier.name == "cuda":
        pytest.skip("a GPU's kernels take (B, L, C) alone")
    return tier


def in_blocks(x: Tensor, where: str = "contiguous") -> Tensor:
    """``x`` (B, L, C) in channel blocks, in memory as ``where`` says."""
    view = to_blocks(x)
    if where == "view":
        return view
    if where == "contiguous":
        return view.contiguous()
    b, blocks, length, block = view.shape
    if where == "sliced":  # blocks in the middle of more of them
        to = x.new_full((b, blocks + 3, length, block), torch.nan)[:, 1 : 1 + blocks]
    elif where == "skipping":  # every second position of longer rows
        to = x.new_full((b, blocks, 2 * length, block), torch.nan)[:, :, 1::2]
    elif where == "every_second":  # no stride is 1
        to = x.new_full((b, blocks, length, 2 * block), torch.nan)[..., ::2]
    elif where == "offset":  # an address that no vector load is aligned to
        to = x.new_full((view.numel() + 1,), torch.nan)[1:].view(view.shape)
    elif where == "batch_inside":
        to = x.new_full((blocks, length, b, block), torch.nan).permute(2, 0, 1, 3)
    else:
        raise AssertionError(where)
    return to.copy_(view)


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


def linear(u: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """In float64."""
    y = torch.einsum("bld,cd->blc", u.double(), weight.double())
    return y if bias is None else y + bias.double()


def to(u: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    y = HYENA.project_channel_blocked(u, weight, bias)
    assert y.shape == (u.size(0), weight.size(0) // 16, u.size(1), 16)
    assert y.is_contiguous()
    return from_blocks(y)


def out_of(u: Tensor, weight: Tensor, bias: Tensor | None = None, where: str = "view") -> Tensor:
    y = HYENA.project_from_channel_blocked(in_blocks(u, where), weight, bias)
    assert y.is_contiguous()
    return y


def check(
    op: Callable[..., Tensor],
    tier: Tier,
    dtype: torch.dtype,
    sizes: tuple[int, int, int, int],
    bias: bool = True,
    **layouts: str,
) -> None:
    """A projection of ``batch, length, inputs, outputs``."""
    batch, length, inputs, outputs = sizes
    x = {"u": rand(batch, length, inputs), "weight": rand(outputs, inputs, seed=1)}
    x["bias"] = rand(outputs, seed=2) if bias else None
    compare(op, linear, x, rand(batch, length, outputs, seed=3), tier, dtype, layouts, ordered=False)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("batch", [1, 3])
def test_projections_of_any_length(tier: Tier, dtype: torch.dtype, batch: int) -> None:
    """Around the ends of what a kernel multiplies at once: 6 positions, and 120."""
    for length in (1, 5, 6, 7, 119, 120, 121, 126, 127, 239, 241, 256, 257, 301):
        check(to, tier, dtype, (batch, length, 20, 48))
        check(out_of, tier, dtype, (batch, length, 48, 20))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("channels", [16, 48, 64, 80, 144])
def test_projections_of_any_width(tier: Tier, dtype: torch.dtype, channels: int) -> None:
    """Whole panels and incomplete ones; more inputs than are summed at once; no bias."""
    for other in (1, 3, 16, 33, 80, 130, 300):
        check(to, tier, dtype, (2, 131, other, channels), bias=other != 33)
        check(out_of, tier, dtype, (2, 131, channels, other), bias=other != 33)
    check(out_of, tier, dtype, (1, 125, 4 * channels, 7))


def test_projections_past_the_caches(tier: Tier) -> None:
    """More than 16 MiB, which a kernel writes in another way."""
    for op, inputs, outputs in ((to, 3, 80), (out_of, 16, 70)):
        u, weight, bias = (t.float().to(tier.device) for t in (rand(1, 60007, inputs), rand(outputs, inputs), rand(80)))
        with tier():
            got = op(u, weight, bias[:outputs])
        torch.testing.assert_close(got, linear(u, weight, bias[:outputs]).float())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_projections_of_any_layout(tier: Tier, dtype: torch.dtype) -> None:
    for layout in LAYOUTS[:-1]:
        check(to, tier, dtype, (3, 17, 5, 32), u=layout, dy=layout)
        check(out_of, tier, dtype, (3, 17, 32, 5), u=layout, dy=layout)


@pytest.mark.parametrize("where", PLACES)
def test_blocks_anywhere_in_memory_are_projected(tier: Tier, where: str) -> None:
    u, g = rand(3, 130, 48).to(tier.device), in_blocks(rand(3, 130, 32).to(tier.device), where)
    weight, bias = rand(32, 20).to(tier.device), rand(32).to(tier.device)
    leaves = [t.requires_grad_() for t in (rand(3, 130, 20).to(tier.device), weight, bias)]
    with tier():
        y = HYENA.project_from_channel_blocked(in_blocks(u, where), rand(20, 48).to(u), bias[:20])
        found = torch.autograd.grad(HYENA.project_channel_blocked(*leaves), leaves, g)
    torch.testing.assert_close(y, linear(u, rand(20, 48).to(u), bias[:20]), rtol=1e-12, atol=1e-12)
    for got, want in zip(found, torch.autograd.grad(linear(*leaves), leaves, from_blocks(g)), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-11)


def test_projections_with_weights_of_any_strides(tier: Tier) -> None:
    u, weight = rand(1, 130, 16).to(tier.device), rand(16, 64).to(tier.device)
    for w, bias in ((weight.t(), None), (weight.t()[::2], weight[0, ::2]), (weight.t()[:1].expand(32, -1), None)):
        with tier():
            torch.testing.assert_close(to(u, w, bias), linear(u, w, bias))
            torch.testing.assert_close(out_of(u, w, bias), linear(u, w, bias))


@pytest.mark.parametrize("shape", [(0, 5), (2, 0)])
def test_projections_of_nothing(tier: Tier, shape: tuple[int, int]) -> None:
    for op, inputs, outputs in ((to, 5, 32), (out_of, 32, 5)):
        check(op, tier, torch.float32, (*shape, inputs, outputs))


def test_projections_without_channels(tier: Tier) -> None:
    with tier():
        nothing = torch.zeros(2, 9, 0, device=tier.device)
        bias = torch.arange(32.0, device=tier.device)
        assert torch.equal(to(nothing, nothing.new_zeros(32, 0), bias), bias.expand(2, 9, 32))
        assert torch.equal(out_of(nothing, nothing.new_zeros(32, 0), bias), bias.expand(2, 9, 32))
        u = torch.ones(2, 9, 16, device=tier.device)
        assert to(u, u.new_zeros(0, 16)).shape == out_of(u, u.new_zeros(0, 16)).shape == (2, 9, 0)


@given(data=st.data())
def test_any_projection(tier: Tier, data: st.DataObject) -> None:
    draw = data.draw
    into, dtype, channels = draw(st.booleans()), draw(st.sampled_from(DTYPES)), 16 * draw(st.integers(1, 9))
    other = draw(st.integers(1, 70))
    sizes = (draw(st.integers(1, 4)), draw(ANY_LENGTH), *((other, channels) if into else (channels, other)))
    layouts = {name: draw(st.sampled_from(LAYOUTS[:-1])) for name in ("u", "dy")}
    op = to if into else partial(out_of, where="view")
    check(op, tier, dtype, sizes, draw(st.booleans()), **layouts)


@pytest.mark.parametrize("dtype", DTYPES[:3], ids=str)
@pytest.mark.parametrize("orders", ["g", "u", "g u"])
def test_the_gradient_of_the_weight(tier: Tier, dtype: torch.dtype, orders: str) -> None:
    for batch, length, outputs, inputs in ((1, 120, 16, 48), (3, 130, 64, 80), (2, 257, 144, 16), (3, 7, 48, 64)):
        g, u = rand(batch, length, outputs), rand(batch, length, inputs, seed=1)
        for where in ("contiguous", "skipping", "offset", "view"):
            given = {
                name: in_blocks(t.to(tier.device, dtype), where) if name in orders else t.to(tier.device, dtype)
                for name, t in (("g", g), ("u", u))
            }
            with tier():
                dw, db = HYENA.project_backward(**given)
            tolerance = {torch.float32: 1e-5, torch.float64: 1e-13, torch.bfloat16: 1e-2}[dtype]
            for got, want in ((dw, torch.einsum("bln,blk->nk", g, u)), (db, g.sum((0, 1)))):
                assert got.dtype == dtype
                torch.testing.assert_close(got.cpu().double(), want, rtol=tolerance, atol=tolerance * 100)


def derivable() -> dict[str, tuple[Callable, list[Tensor]]]:
    """Small calls of every op that takes or gives channel blocks."""
    z, dy = to_blocks(rand(1, 3, 32)).contiguous(), to_blocks(rand(1, 3, 16)).contiguous()
    weight, bias = rand(32, 2, seed=1), rand(32, seed=2)
    taps, d, mask = rand(1, 3, 1, seed=3), rand(1, 16, seed=4), torch.tensor([[True, False, True]])

    def spectrum(h: Tensor) -> Tensor:
        return ops.filter_spectrum(h, 3)

    def at(t: Tensor) -> Tensor:
        return mask.to(t.device)

    return {
        "to": (HYENA.project_channel_blocked, [rand(1, 3, 2), rand(16, 2), rand(16)]),
        "from": (HYENA.project_from_channel_blocked, [z, rand(2, 32), rand(2)]),
        "backward, g": (HYENA.project_backward, [dy, rand(1, 3, 2)]),
        "backward, u": (HYENA.project_backward, [rand(1, 3, 2), dy]),
        "backward, both": (HYENA.project_backward, [dy, dy + 1]),
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


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "plain"])
def test_opcheck_of_projections(device: str, bias: bool) -> None:
    for op, u, weight in (
        (HYENA.project_channel_blocked, rand(2, 3, 5), rand(32, 5)),
        (HYENA.project_from_channel_blocked, in_blocks(rand(2, 3, 32), "skipping"), rand(5, 32)),
    ):
        leaves = [t.float().to(device).requires_grad_() for t in (u, weight, rand(weight.size(0)))]
        torch.library.opcheck(op.default, (*leaves[:2], leaves[2] if bias else None))


@pytest.mark.parametrize("op", ["recurrence", "direct_recurrence"])
@pytest.mark.parametrize("z_bias", [False, True])
def test_opcheck_of_mixing(device: str, op: str, z_bias: bool) -> None:
    x = place(recurrence.inputs(2, 6, 16, taps=3, mask="random", z_bias=z_bias), Tier("any", device), torch.float32)
    z, rest = arguments(x, op)
    z, dy = in_blocks(z), in_blocks(rand(2, 6, 16).float().to(device))
    torch.library.opcheck(getattr(HYENA, f"{op}_backward").default, (dy, z, *rest))
    leaves = [t.requires_grad_() if isinstance(t, Tensor) and t.is_floating_point() else t for t in (z, *rest)]
    torch.library.opcheck(getattr(HYENA, op).default, tuple(leaves))


def test_opcheck_of_the_gradient_of_the_weight(device: str) -> None:
    rows, blocks = rand(2, 6, 16).float().to(device), in_blocks(rand(2, 6, 32).float().to(device))
    for g, u in ((rows, blocks), (blocks, rows), (blocks, blocks + 1)):
        torch.library.opcheck(HYENA.project_backward.default, (g.requires_grad_(), u))


def test_errors_name_the_numbers(host: Tier) -> None:
    def raises(match: str, op: Callable[..., Any], *args: Any) -> None:
        with host(), pytest.raises(ValueError, match=match):
            op(*args)

    u, blocks, weight = torch.zeros(2, 7, 5), torch.zeros(2, 3, 7, 16), torch.zeros(32, 5)
    raises(r"\b24 channels.*\b16\b", HYENA.project_channel_blocked, u, weight[:24], None)
    raises(r"weight must.*\b5\).*got .*\(32, 4\)", HYENA.project_channel_blocked, u, weight[:, :4], None)
    raises(r"bias must.*\(32,\).*got .*\(31,\)", HYENA.project_channel_blocked, u, weight, torch.zeros(31))
    raises(r"u must.*got .*\(2, 3, 7, 16\)", HYENA.project_channel_blocked, blocks, torch.zeros(16, 48), None)
    weight = torch.zeros(5, 48)
    raises(r"u must.*16\).*got .*\(2, 3, 7, 8\)", HYENA.project_from_channel_blocked, blocks[..., :8], weight, None)
    raises(r"u must.*16\).*got .*\(2, 7, 48\)", HYENA.project_from_channel_blocked, torch.zeros(2, 7, 48), weight, None)
    raises(r"weight must.*48\).*got .*\(5, 47\)", HYENA.project_from_channel_blocked, blocks, weight[:, :47], None)
    raises(r"bias must.*\(5,\).*got .*\(4,\)", HYENA.project_from_channel_blocked, blocks, weight, torch.zeros(4))
    raises(r"must.*16\).*got .*\(2, 3, 7, 8\)", HYENA.project_backward, blocks[..., :8], blocks)
    raises(r"must.*16\).*got .*\(2, 3, 7, 8\)", HYENA.project_backward, blocks, blocks[..., :8])
    raises(r"must.*\b7\b.*got .*\(2, 3, 6, 16\)", HYENA.project_backward, blocks[:, :, :6], blocks)
    raises(r"must.*\b7\b.*got .*\(2, 6, 5\)", HYENA.project_backward, u[:, :6], blocks)
    raises(r"must.*\b7\b.*got .*\(1, 3, 7, 16\)", HYENA.project_backward, blocks[:1], u)


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


@pytest.mark.skipif(EXTENSION.instructions is None, reason="torch's matrix products give other bits")
@of_cpu
def test_the_same_bits_whatever_the_threads() -> None:
    u, weight = rand(3, 500, 40).float(), rand(160, 40).float()
    g = HYENA.project_channel_blocked(u, weight, None)
    threads, got = torch.get_num_threads(), []
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            got.append([HYENA.project_channel_blocked(u, weight, None), *HYENA.project_backward(g, u)])
            got[-1].append(HYENA.project_from_channel_blocked(g, weight.t(), None))
    finally:
        torch.set_num_threads(threads)
    for each in got[1:]:
        assert all(torch.equal(a, b) for a, b in zip(each, got[0], strict=True))
