"""``hyena::project_channel_blocked``, ``project_from_channel_blocked`` and the gradients of their weights."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from helpers.blocks import PLACES, in_blocks, of_cpu
from helpers.cases import ANY_LENGTH, DTYPES, LAYOUTS, Tier, compare, rand
from hyena.ops._extension import EXTENSION
from hyena.ops._layout import from_blocks

HYENA = torch.ops.hyena


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
    """Around the ends of what a kernel multiplies at once: 6 positions, and 115 to 120."""
    for length in (1, 5, 6, 7, 115, 116, 119, 120, 121, 126, 127, 239, 241, 256, 257, 301):
        check(to, tier, dtype, (batch, length, 20, 48))
        check(out_of, tier, dtype, (batch, length, 48, 20))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("channels", [16, 48, 64, 80, 144])
def test_projections_of_any_width(tier: Tier, dtype: torch.dtype, channels: int) -> None:
    """Whole panels and incomplete ones; no bias."""
    for other in (1, 3, 16, 33, 80, 130, 300):
        check(to, tier, dtype, (2, 131, other, channels), bias=other != 33)
        check(out_of, tier, dtype, (2, 131, channels, other), bias=other != 33)
    check(out_of, tier, dtype, (1, 125, 4 * channels, 7))


def test_projections_of_more_channels_than_are_summed_at_once(tier: Tier) -> None:
    """768, and twice as many."""
    for inputs in (769, 1552):
        check(to, tier, torch.float32, (2, 129, inputs, 80))
    for inputs in (784, 1552):
        check(out_of, tier, torch.float32, (2, 129, inputs, 70))


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
    """Small calls of every op here."""
    z, dy = in_blocks(rand(1, 3, 32)), in_blocks(rand(1, 3, 16))
    return {
        "to": (HYENA.project_channel_blocked, [rand(1, 3, 2), rand(16, 2), rand(16)]),
        "from": (HYENA.project_from_channel_blocked, [z, rand(2, 32), rand(2)]),
        "backward, g": (HYENA.project_backward, [dy, rand(1, 3, 2)]),
        "backward, u": (HYENA.project_backward, [rand(1, 3, 2), dy]),
        "backward, both": (HYENA.project_backward, [dy, dy + 1]),
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


def test_opcheck_of_the_gradient_of_the_weight(device: str) -> None:
    rows, blocks = rand(2, 6, 16).float().to(device), in_blocks(rand(2, 6, 32).float().to(device))
    for g, u in ((rows, blocks), (blocks, rows), (blocks, blocks + 1)):
        torch.library.opcheck(HYENA.project_backward.default, (g.requires_grad_(), u))


def test_errors_name_the_numbers(tier: Tier) -> None:
    def raises(match: str, op: Callable[..., Any], *args: Any) -> None:
        with tier(), pytest.raises(ValueError, match=match):
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


@pytest.mark.skipif(EXTENSION.instructions is None, reason="torch's matrix products give other bits")
@of_cpu
def test_the_same_bits_whatever_the_threads() -> None:
    """Threads that have outputs of their own, and, of the weight's gradient, inputs too."""
    u, weight, few = rand(3, 500, 160).float(), rand(96, 160).float(), rand(3, 500, 16, seed=1).float()
    g = HYENA.project_channel_blocked(u, weight, None)
    threads, got = torch.get_num_threads(), []
    try:
        for count in (1, 2, 5, 13):
            torch.set_num_threads(count)
            got.append([HYENA.project_channel_blocked(u, weight, None), *HYENA.project_backward(g, u)])
            got[-1] += [HYENA.project_from_channel_blocked(g, weight.t(), None), *HYENA.project_backward(few, u)]
    finally:
        torch.set_num_threads(threads)
    for each in got[1:]:
        assert all(torch.equal(a, b) for a, b in zip(each, got[0], strict=True))
