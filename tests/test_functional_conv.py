"""Long convolutions as functions: own filters for each row, circles, no entries, bad arguments, and NaN."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from helpers import oracle
from helpers.cases import DTYPES, LAYOUTS, Tier, compare, offsets, rand
from hyena import functional, ops

CAUSAL = pytest.mark.parametrize("causal", [True, False], ids=["causal", "two-sided"])


@given(data=st.data())
def test_a_filter_for_each_row(tier: Tier, data: st.DataObject) -> None:
    causal, dtype = data.draw(st.booleans()), data.draw(st.sampled_from(DTYPES))
    batch, length, taps = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 70)), data.draw(st.integers(1, 90))
    groups = data.draw(st.sampled_from([1, 3]))
    taps = taps if causal else 2 * taps - 1
    x: dict[str, Tensor] = {"v": rand(batch, length, 6), "h": rand(batch, taps, groups, seed=1) / 4}
    x |= {"d": rand(6, seed=2)}
    if data.draw(st.booleans()):
        x |= {"pre": rand(batch, length, 6, seed=3), "post": rand(batch, length, 6, seed=4)}

    def want(v: Tensor, h: Tensor, d: Tensor, **gates: Tensor) -> Tensor:
        rows = [
            oracle.gated_conv(v[i : i + 1], h[i], d, causal=causal, **{n: g[i : i + 1] for n, g in gates.items()})
            for i in range(batch)
        ]
        return torch.cat(rows)

    layouts = {"v": data.draw(st.sampled_from(LAYOUTS[:-1]))}
    fn, dy = partial(functional.gated_conv, causal=causal), rand(batch, length, 6, seed=5)
    compare(fn, want, x, dy, tier, dtype, layouts, h=torch.promote_types(dtype, torch.float32))


def circle(x: Tensor, h: Tensor, d: Tensor, *, causal: bool) -> Tensor:
    """Tap by tap, the row turned by each lag."""
    first = 0 if causal else -(h.size(-2) // 2)
    h = h.double().repeat_interleave(x.size(2) // h.size(-1), dim=-1)
    taps = h.movedim(-2, 0) if h.dim() == 2 else h.movedim(-2, 0)[:, :, None]
    return d * x + sum(tap * x.double().roll(lag, 1) for lag, tap in enumerate(taps, first))


@given(data=st.data())
def test_circles(tier: Tier, data: st.DataObject) -> None:
    causal, dtype = data.draw(st.booleans()), data.draw(st.sampled_from(DTYPES))
    length, taps = data.draw(st.integers(1, 60)), data.draw(st.integers(1, 90))
    taps = taps if causal else 2 * taps - 1
    own = (2,) if data.draw(st.booleans()) else ()
    x = {"x": rand(2, length, 4), "h": rand(*own, taps, data.draw(st.sampled_from([1, 2, 4])), seed=1) / 8}
    x |= {"d": rand(4, seed=2)}
    fn, want = partial(functional.fft_conv, causal=causal, circular=True), partial(circle, causal=causal)
    layouts = {"x": data.draw(st.sampled_from(LAYOUTS[:-1]))}
    dy = rand(2, length, 4, seed=3)
    compare(fn, want, x, dy, tier, dtype, layouts, h=torch.promote_types(dtype, torch.float32))


@pytest.mark.parametrize("shape", [(0, 9, 4), (2, 0, 4), (0, 0, 4)])
@pytest.mark.parametrize("taps", [3, 200])
def test_no_entries(tier: Tier, shape: tuple[int, ...], taps: int) -> None:
    """As torch's layers: the result has none either, and gradients are zero."""
    x, h, d = (torch.randn(s, device=tier.device, requires_grad=True) for s in (shape, (taps, 4), (4,)))
    weight, bias = (torch.randn(s, device=tier.device, requires_grad=True) for s in ((4, 3), (4,)))
    own = torch.randn(shape[0], taps, 4, device=tier.device, requires_grad=True)
    with tier():
        cases = [
            (functional.fft_conv(x, h, d), [x, h, d]),
            (functional.fft_conv(x, h[:3], d, causal=False), [x, h, d]),
            (functional.fft_conv(x, h, d, circular=True), [x, h, d]),
            (functional.fft_conv(x, own, d), [x, own, d]),
            (functional.gated_conv(x, h, d, x, x), [x, h, d]),
            (functional.short_conv(x, weight, bias), [x, weight, bias]),
            (functional.short_conv(x, weight, bias, padding="same", activation="silu"), [x, weight, bias]),
            (
                functional.short_conv(x, weight, bias, torch.ones(shape[:2], dtype=torch.bool, device=x.device)),
                [x, bias],
            ),
            (functional.short_conv(x, weight, bias, return_final_state=True)[0], [x, weight, bias]),
        ]
        for y, leaves in cases:
            assert y.shape == shape
            for t, g in zip(leaves, torch.autograd.grad(y.sum(), leaves), strict=True):
                assert torch.equal(g, torch.zeros_like(t))


def test_only_empty_packed_rows() -> None:
    x = torch.randn(1, 0, 4)
    for y in (
        functional.fft_conv(x, torch.randn(5, 4)),
        functional.gated_conv(x, torch.randn(5, 4), cu_seqlens=torch.tensor([0, 0, 0])),
        functional.short_conv(x, torch.randn(4, 3), cu_seqlens=torch.tensor([0, 0])),
    ):
        assert y.shape == (1, 0, 4)


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ({"max_seqlen": 5}, ValueError, r"max_seqlen=5 is the longest of packed rows: pass their cu_seqlens too"),
        ({"cu_seqlens": offsets([4, 3]), "max_seqlen": 4.0}, TypeError, r"max_seqlen must be an int, got 4.0"),
        ({"cu_seqlens": offsets([4, 3]), "max_seqlen": True}, TypeError, r"max_seqlen must be an int, got True"),
        ({"cu_seqlens": offsets([4, 3]), "max_seqlen": 0}, ValueError, r"max_seqlen must be at least 1, got 0"),
        ({"cu_seqlens": offsets([4, 3]), "max_seqlen": 3}, ValueError, r"a row of 4 positions, more than the 3"),
        ({"cu_seqlens": torch.tensor([0])}, ValueError, r"cu_seqlens must be .* at least 2 offsets.* \(1,\)"),
        ({"cu_seqlens": torch.tensor([])}, ValueError, r"cu_seqlens must be .* at least 2 offsets.* \(0,\)"),
        ({"cu_seqlens": [0, 4, 7]}, TypeError, r"cu_seqlens must be a tensor of offsets, got list"),
        ({"cu_seqlens": offsets([4, 3]).float()}, ValueError, r"cu_seqlens must be .* got torch.float32"),
        ({"cu_seqlens": offsets([4, 3]).to("meta")}, ValueError, r"cu_seqlens is on meta, but the input on cpu"),
        ({"cu_seqlens": offsets([4, 2])}, ValueError, r"rise from 0 to the packed length 7"),
        ({"h": torch.zeros(3, 4, dtype=torch.complex64)}, ValueError, r"h must be floating point .*complex64"),
        ({"h": torch.zeros(3, 4, dtype=torch.int64)}, ValueError, r"h must be floating point .*int64"),
        ({"d": torch.zeros(4, dtype=torch.complex64)}, ValueError, r"d must be .*complex64"),
        ({"v": torch.zeros(1, 7, 4, dtype=torch.complex64)}, ValueError, r"v must be floating point .*complex64"),
        ({"h": torch.zeros(0, 4)}, ValueError, r"h must be \(taps, channels\).*\(0, 4\)"),
        ({"h": torch.zeros(2, 3, 4)}, ValueError, r"h must be .*\(1, taps, channels\).*\(2, 3, 4\)"),
        ({"h": torch.zeros(3, 4, device="meta")}, ValueError, r"h is on meta"),
    ],
)
@pytest.mark.parametrize("taps", [3, 40])
def test_arguments_that_do_not_fit(arguments: dict[str, Any], error: type[Exception], match: str, taps: int) -> None:
    given = {"v": torch.zeros(1, 7, 4), "h": torch.zeros(taps, 4), **arguments}
    with pytest.raises(error, match=match):
        functional.gated_conv(given.pop("v"), given.pop("h"), **given)


def test_complex_weights_of_a_short_conv() -> None:
    x = torch.zeros(1, 7, 4)
    for name, t in {"weight": torch.zeros(4, 3), "bias": torch.zeros(4)}.items():
        with pytest.raises(ValueError, match=rf"{name} must be .*complex64"):
            functional.short_conv(x, **{"weight": torch.zeros(4, 3), name: t.to(torch.complex64)})


@pytest.mark.parametrize("poison", [torch.nan, torch.inf, -torch.inf])
def test_short_and_direct_convolutions_keep_earlier_outputs(tier: Tier, poison: float) -> None:
    x, h, weight = (torch.randn(s, device=tier.device) for s in ((2, 40, 3), (7, 3), (3, 4)))
    dirty = x.clone()
    dirty[1, 20, 2] = poison
    with tier():
        for fn in (
            lambda x: functional.short_conv(x, weight),
            lambda x: functional.short_conv(x, weight, activation="silu"),
            lambda x: ops.direct_conv(x, h),
        ):
            got, want = fn(dirty), fn(x)
            assert torch.equal(got[:, :20], want[:, :20])
            assert torch.equal(got[0], want[0])
            assert torch.equal(got[..., :2], want[..., :2])
            assert not got[1, 20, 2].isfinite()


def test_anomaly_detection_names_the_first(tier: Tier) -> None:
    """A transform spreads a NaN over its row: under detect_anomaly it raises instead."""
    x, h, d = (torch.randn(s, device=tier.device) for s in ((2, 300, 3), (300, 3), (3,)))
    z, weight = torch.randn(2, 300, 9, device=tier.device), torch.randn(9, 3, device=tier.device)
    dirty, dirty_z, dirty_h = x.clone(), z.clone(), h.clone()
    dirty[1, 17, 2] = dirty[1, 30, 0] = torch.nan
    dirty_z[0, 5, 4], dirty_h[9, 1] = torch.inf, -torch.inf
    mask = torch.ones(2, 300, dtype=torch.bool, device=tier.device)
    mask[0, 5] = False
    with tier():
        spectrum = ops.filter_spectrum(h[None], 320)
        assert functional.fft_conv(dirty, h)[1, :17, 2].isnan().any()
        with torch.autograd.detect_anomaly(check_nan=False):
            functional.fft_conv(x, h)
            with pytest.raises(RuntimeError, match=r"v is nan at \(1, 17, 2\)"):
                functional.fft_conv(dirty, h)
            with pytest.raises(RuntimeError, match=r"post is nan at \(1, 17, 2\)"):
                functional.gated_conv(x, h, None, x, dirty)
            with pytest.raises(RuntimeError, match=r"h is -inf at \(0, 9, 1\)"):
                functional.fft_conv(x, dirty_h)
            with pytest.raises(RuntimeError, match=r"z is inf at \(0, 5, 4\)"):
                ops.recurrence(dirty_z, weight, None, spectrum, d[None])
            ops.recurrence(dirty_z, weight, None, spectrum, d[None], mask)
