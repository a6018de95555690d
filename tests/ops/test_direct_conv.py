"""``hyena::direct_conv`` against explicit matrices, and the rule that says where it is used."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from helpers import oracle
from helpers.cases import ANY_LENGTH, DTYPES, LAYOUTS, Tier, compare, laid_out, offsets, place, rand, rows_of
from helpers.gated_conv import direct_errors, inputs
from hyena import functional, ops


def matrices(cu_seqlens: Tensor | None = None, *, causal: bool = True, **given: Tensor) -> Tensor:
    """The oracle, with packed rows as the op takes them."""
    return oracle.gated_conv(**given, causal=causal, rows=rows_of(cu_seqlens))


@pytest.mark.parametrize("causal", [True, False], ids=["causal", "two-sided"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("length", [1, 7, 8, 9, 255, 256, 257, 700])
def test_lengths(tier: Tier, dtype: torch.dtype, length: int, causal: bool) -> None:
    """Around the ends of a tile, and more taps than there are positions."""
    for taps in (1, 8, 17, 70):
        x = inputs(1, length, 2, taps, 2, causal=causal)
        wide = torch.promote_types(dtype, torch.float32)
        fn = partial(ops.direct_conv, causal=causal)
        want, allowed = partial(matrices, causal=causal), direct_errors(dtype)
        compare(fn, want, x, rand(1, length, 2), tier, dtype, allowed=allowed, h=wide)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(tier: Tier, dtype: torch.dtype, layout: str) -> None:
    x = inputs(3, 21, 10, 5, 5)
    for other in LAYOUTS[:4]:
        layouts = {"v": layout, "pre": other, "post": layout if layout != "expanded" else other, "dy": other}
        compare(ops.direct_conv, matrices, x, rand(3, 21, 10), tier, dtype, layouts)


@given(data=st.data())
def test_anything(tier: Tier, data: st.DataObject) -> None:
    draw = data.draw
    batch, length, taps = draw(st.integers(0, 3)), draw(ANY_LENGTH), draw(st.integers(1, 40))
    groups, width = draw(st.sampled_from([1, 2, 3, 8, 17, 33])), draw(st.sampled_from([1, 2, 5]))
    causal, gates = draw(st.booleans()), draw(st.sampled_from(["", "d", "pre", "post", "d pre post"]))
    dtype = draw(st.sampled_from(DTYPES))
    layouts = {name: draw(st.sampled_from(LAYOUTS if batch else LAYOUTS[:1])) for name in ("v", "dy")}
    x = inputs(batch, length, groups * width, taps, groups, causal=causal, gates=gates)
    dy = laid_out(rand(batch, length, groups * width), layouts["dy"])
    fn, want = partial(ops.direct_conv, causal=causal), partial(matrices, causal=causal)
    wide, allowed = torch.promote_types(dtype, torch.float32), direct_errors(dtype)
    compare(fn, want, x, dy, tier, dtype, layouts, allowed=allowed, h=wide)


@given(data=st.data())
def test_packed_rows(tier: Tier, data: st.DataObject) -> None:
    sizes = data.draw(st.lists(st.integers(0, 40), min_size=1, max_size=6).filter(sum))
    causal, channels = data.draw(st.booleans()), data.draw(st.sampled_from([1, 6, 8]))
    x = inputs(1, sum(sizes), channels, data.draw(st.integers(1, 12)), 1, causal=causal)
    x["cu_seqlens"] = offsets(sizes)
    fn, want = partial(ops.direct_conv, causal=causal), partial(matrices, causal=causal)
    compare(fn, want, x, rand(1, sum(sizes), channels), tier, torch.float32)


def test_no_row_sees_another(tier: Tier) -> None:
    v = torch.zeros(1, 9, 3, device=tier.device)
    v[:, 4] = torch.inf
    with tier():
        y = ops.direct_conv(
            v, torch.ones(7, 3, device=tier.device), None, None, None, offsets([4, 1, 4]).to(tier.device)
        )
    assert y[:, :4].eq(0).all()
    assert y[:, 5:].eq(0).all()


@pytest.mark.parametrize("causal", [True, False], ids=["causal", "two-sided"])
def test_gradgradcheck(tier: Tier, causal: bool) -> None:
    leaves = [t.requires_grad_() for t in place(inputs(2, 5, 4, 3, 2, causal=causal), tier, torch.float64).values()]
    with tier():
        assert torch.autograd.gradcheck(lambda *a: ops.direct_conv(*a, causal=causal), leaves)
        assert torch.autograd.gradgradcheck(lambda *a: ops.direct_conv(*a, causal=causal), leaves)


@pytest.mark.parametrize("gates", ["", "d pre post"])
@pytest.mark.parametrize("layout", ["contiguous", "channel_major", "sliced"])
def test_opcheck(device: str, layout: str, gates: str) -> None:
    x = place(inputs(2, 6, 4, 3, 2, gates=gates), Tier("any", device), torch.float32, {"v": layout})
    leaves = [t if t is None else t.requires_grad_() for t in x.values()]
    torch.library.opcheck(torch.ops.hyena.direct_conv.default, (*leaves, None, True))
    dy = torch.ones_like(leaves[0])
    torch.library.opcheck(torch.ops.hyena.direct_conv_backward.default, (dy, *leaves, None, True))


def test_half_precision_taps(tier: Tier) -> None:
    """Gradients come in the dtype of what they belong to."""
    x = place(inputs(2, 9, 4, 3, 2), tier, torch.bfloat16)
    leaves = [t.requires_grad_() for t in x.values()]
    with tier():
        grads = torch.autograd.grad(ops.direct_conv(*leaves).sum(), leaves)
    assert {g.dtype for g in grads} == {torch.bfloat16}


def test_few_taps_are_applied_one_by_one(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rule, and that both ways give the same."""
    kernels = ops.has_kernel("direct_conv_backward", torch.device(device))
    rule = [(32, 10, True), (33, 10, False), (33, 300, True), (128, 1024, True), (128, 1000, False), (129, 9999, False)]
    if device == "cuda":
        rule = [(3, 10, False), (128, 10, False), (129, 9999, False)]
        assert not ops.is_direct(3, 4096, torch.device(device), torch.bfloat16)
    for taps, length, direct in rule:
        assert ops.is_direct(taps, length, torch.device(device)) == (direct and kernels), (taps, length)
    used = []
    monkeypatch.setattr(
        ops, "direct_conv", lambda *a: used.append(a[1].size(0)) or torch.ops.hyena.direct_conv(*a[:-1])
    )
    for causal, taps in ((True, 20), (False, 11), (True, 40), (False, 200)):
        x = inputs(2, 50, 4, taps, 2, causal=causal)
        want = oracle.gated_conv(**x, causal=causal)
        y = functional.gated_conv(**{name: t.to(device) for name, t in x.items()}, causal=causal)
        torch.testing.assert_close(y.cpu(), want)
    assert used == ([20, 21] if kernels and device == "cpu" else [])  # float64 is not for the CUDA kernel


def test_it_compiles_whole(device: str) -> None:
    x = {name: t.float().to(device) for name, t in inputs(2, 50, 4, 20, 2).items()}
    whole = torch.compile(functional.gated_conv, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(whole(**x), functional.gated_conv(**x))


def test_errors_name_the_numbers() -> None:
    v = torch.zeros(2, 7, 4)
    with pytest.raises(ValueError, match=r"h must be \(taps, channels\) .*got \(4,\)"):
        ops.direct_conv(v, torch.zeros(4))
    with pytest.raises(ValueError, match=r"h must be \(taps, channels\) .*got \(0, 4\)"):
        ops.direct_conv(v, torch.zeros(0, 4))
    with pytest.raises(ValueError, match=r"4 channels cannot share 3 filters"):
        ops.direct_conv(v, torch.zeros(3, 3))
    with pytest.raises(ValueError, match=r"odd number of taps.*got 4"):
        ops.direct_conv(v, torch.zeros(4, 4), causal=False)
    with pytest.raises(ValueError, match=r"d must be \(4,\) .*got \(3,\)"):
        ops.direct_conv(v, torch.zeros(3, 4), torch.zeros(3))
    with pytest.raises(ValueError, match=r"pre must be .* of shape \(2, 7, 4\), got"):
        ops.direct_conv(v, torch.zeros(3, 4), None, v[:, 1:])
