"""``hyena::direct_conv`` of rows and filters of many sizes, and what an output may depend on."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor

from helpers import oracle
from helpers.cases import Tier, compare, offsets, rand, rows_of
from helpers.gated_conv import direct_errors, inputs
from hyena import ops

HALF = [torch.float32, torch.bfloat16, torch.float16]
# Around the ends of tiles and segments: batch, length, taps, filter channels (of two).
SIZES = [
    (1, 1, 1, 2),
    (3, 17, 17, 1),
    (16, 127, 7, 2),
    (17, 128, 128, 1),
    (1, 129, 129, 2),
    (3, 129, 512, 2),
    (2, 1000, 1000, 1),
    (3, 1000, 130, 2),
    (1, 2048, 129, 1),
    (1, 2048, 2048, 2),
    (1, 4099, 7, 2),
    (1, 4099, 512, 1),
]


def matrices(cu_seqlens: Tensor | None = None, *, causal: bool = True, **given: Tensor) -> Tensor:
    """The oracle, with packed rows as the op takes them."""
    return oracle.gated_conv(**given, causal=causal, rows=rows_of(cu_seqlens))


@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize(("batch", "length", "taps", "groups"), SIZES)
def test_sizes(tier: Tier, dtype: torch.dtype, batch: int, length: int, taps: int, groups: int) -> None:
    x = inputs(batch, length, 2, taps, groups)
    layouts, allowed = {"v": "channel_major"}, direct_errors(dtype)
    dy = rand(batch, length, 2)
    compare(ops.direct_conv, matrices, x, dy, tier, dtype, layouts, allowed=allowed, h=torch.float32)


@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize(("length", "taps"), [(129, 7), (300, 150), (700, 70), (257, 257)])
def test_two_sided(tier: Tier, dtype: torch.dtype, length: int, taps: int) -> None:
    x = inputs(3, length, 2, taps, 1, causal=False)
    fn, want = partial(ops.direct_conv, causal=False), partial(matrices, causal=False)
    layouts, allowed = {"pre": "channel_major"}, direct_errors(dtype)
    compare(fn, want, x, rand(3, length, 2), tier, dtype, layouts, allowed=allowed, h=torch.float32)


@pytest.mark.parametrize("causal", [True, False], ids=["causal", "two-sided"])
@pytest.mark.parametrize("sizes", [[0, 5, 0, 300, 131, 1, 8, 0], [1] * 40, [257, 255], [128, 128, 0, 640]], ids=str)
def test_packed_rows_of_any_length(tier: Tier, sizes: list[int], causal: bool) -> None:
    x = inputs(1, sum(sizes), 4, 140, 2, causal=causal)
    x["cu_seqlens"] = offsets(sizes)
    fn, want = partial(ops.direct_conv, causal=causal), partial(matrices, causal=causal)
    dtype, layouts = torch.bfloat16, {"v": "channel_major"}
    dy, allowed = rand(1, sum(sizes), 4), direct_errors(dtype)
    compare(fn, want, x, dy, tier, dtype, layouts, allowed=allowed, h=torch.float32)


def _call(tier: Tier, v: Tensor, h: Tensor, pre: Tensor) -> Tensor:
    with tier():
        return ops.direct_conv(v.to(tier.device), h.to(tier.device), None, pre.to(tier.device)).cpu()


def _rows(dtype: torch.dtype, length: int, taps: int) -> tuple[Tensor, Tensor, Tensor]:
    """Rows that begin quietly, and are quieter still than that in places."""
    v, pre = rand(3, length, 2, seed=1), rand(3, length, 2, seed=2)
    v[:, :20] *= 2.0**-10
    pre[1, : length // 3] *= 2.0**-6
    return v.to(dtype), rand(taps, 2, seed=3).float(), pre.to(dtype)


@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize(("length", "taps"), [(300, 300), (700, 40), (257, 129)])
def test_no_bit_of_an_output_depends_on_what_is_later(tier: Tier, dtype: torch.dtype, length: int, taps: int) -> None:
    v, h, pre = _rows(dtype, length, taps)
    y = _call(tier, v, h, pre)
    for at in (16, 131, length // 2, length - 1):
        for louder in (1e4, 1e30, torch.inf, torch.nan):
            later = v.clone()
            later[:, at:] *= louder
            assert torch.equal(_call(tier, later, h, pre)[:, :at], y[:, :at]), (at, louder)


@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("what", [torch.inf, -torch.inf, torch.nan])
def test_what_is_not_finite_stays_where_its_taps_reach(tier: Tier, dtype: torch.dtype, what: float) -> None:
    length, taps, at = 290, 37, 117
    v, h, pre = _rows(dtype, length, taps)
    y = _call(tier, v, h, pre)
    v[1, at] = what
    changed = _call(tier, v, h, pre)
    reached = torch.zeros_like(y, dtype=torch.bool)
    reached[1, at : at + taps] = True
    assert not changed[reached].isfinite().any()
    torch.testing.assert_close(changed[~reached], y[~reached])


@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("where", ["v", "dy"])
def test_gradients_of_what_is_not_finite(tier: Tier, dtype: torch.dtype, where: str) -> None:
    length, taps, at = 290, 37, 117
    v, h, pre = _rows(dtype, length, taps)
    dy = rand(3, length, 2, seed=4).to(dtype)
    (v if where == "v" else dy)[1, at, 1] = torch.nan
    leaves = [t.to(tier.device).requires_grad_() for t in (v, h, pre)]
    with tier():
        y = ops.direct_conv(leaves[0], leaves[1], None, leaves[2])
        grads = torch.autograd.grad(y, leaves, dy.to(tier.device))
    reached = [torch.zeros_like(t, dtype=torch.bool) for t in (v, h, pre)]
    reached[1][:, 1] = True
    if where == "dy":
        reached[0][1, at - taps + 1 : at + 1, 1] = True
        reached[2][1, at - taps + 1 : at + 1, 1] = True
    else:  # of the product that it is a factor of, only the other factor's
        reached[2][1, at, 1] = True
    for got, want in zip(grads, reached, strict=True):
        assert torch.equal(got.cpu().isnan(), want)
