"""Public functions: their one-line meaning in plain PyTorch, the oracle, and their errors."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from helpers import oracle
from helpers.cases import DTYPES, LAYOUTS, Tier, compare, make_mask, offsets, rand
from hyena import HyenaOperator, functional

CAUSAL = pytest.mark.parametrize("causal", [True, False], ids=["causal", "two-sided"])


def filters(taps: int, channels: int, causal: bool) -> Tensor:
    return rand(taps if causal else 2 * taps - 1, channels, seed=7)


def test_short_conv_is_conv1d() -> None:
    x, weight, bias = rand(2, 11, 4), rand(4, 3, seed=1), rand(4, seed=2)
    want = F.conv1d(F.pad(x.mT, (weight.size(1) - 1, 0)), weight[:, None], bias, groups=4).mT
    torch.testing.assert_close(functional.short_conv(x, weight, bias), want)


@CAUSAL
def test_fft_conv_is_a_toeplitz_product(causal: bool) -> None:
    x, h, d = rand(2, 11, 4), filters(11, 4, causal), rand(4, seed=2)
    want = torch.einsum("cts,bsc->btc", functional.toeplitz(h, 11, causal=causal), x) + d * x
    torch.testing.assert_close(functional.fft_conv(x, h, d, causal=causal), want)


@CAUSAL
def test_gated_conv_is_fft_conv_between_gates(causal: bool) -> None:
    v, pre, post = rand(2, 11, 4), rand(2, 11, 4, seed=1), rand(2, 11, 4, seed=2)
    h, d = filters(5, 2, causal), rand(4, seed=3)
    want = post * functional.fft_conv(pre * v, h, d, causal=causal)
    torch.testing.assert_close(functional.gated_conv(v, h, d, pre, post, causal=causal), want)


@given(data=st.data())
def test_filters_of_any_length(tier: Tier, data: st.DataObject) -> None:
    """Taps beyond the input do nothing, wherever a transform would have wrapped them to; their gradient is zero."""
    length, taps = data.draw(st.integers(1, 80)), data.draw(st.integers(1, 300))
    causal, dtype = data.draw(st.booleans()), data.draw(st.sampled_from(DTYPES))
    groups, width = data.draw(st.sampled_from([1, 3])), data.draw(st.sampled_from([1, 2]))
    channels = groups * width
    inputs = {"x": rand(2, length, channels), "h": filters(taps, groups, causal), "d": rand(channels, seed=2)}

    def want(x: Tensor, h: Tensor, d: Tensor) -> Tensor:
        return oracle.gated_conv(x, h, d, causal=causal)

    own = data.draw(st.sampled_from([dtype, torch.float32, torch.float64]))
    fn, dy = partial(functional.fft_conv, causal=causal), rand(2, length, channels, seed=3)
    layouts = {"x": data.draw(st.sampled_from(LAYOUTS[:-1]))}
    compare(fn, want, inputs, dy, tier, dtype, layouts, h=own if dtype != torch.float64 else dtype)


@CAUSAL
@pytest.mark.parametrize("max_seqlen", [None, 9, 12, 100])
def test_packed_rows_are_separate(tier: Tier, causal: bool, max_seqlen: int | None) -> None:
    sizes = [4, 0, 9, 1]
    v, h, gates = rand(1, 14, 3), filters(9, 3, causal), (rand(1, 14, 3, seed=1), rand(1, 14, 3, seed=2))
    on = [t.to(tier.device) for t in (v, h, *gates)]
    at = offsets(sizes).to(tier.device)
    with tier():
        y = functional.gated_conv(*on[:2], None, *on[2:], causal=causal, cu_seqlens=at, max_seqlen=max_seqlen)
        z = functional.short_conv(on[0], on[1][:3].T, cu_seqlens=at)
    rows = [(0, 4), (4, 13), (13, 14)]
    torch.testing.assert_close(y.cpu(), oracle.gated_conv(v, h, None, *gates, causal=causal, rows=rows))
    torch.testing.assert_close(z.cpu(), oracle.short_conv(v, h[:3].T, rows=rows))


def test_a_row_that_fits_the_transform_but_not_max_seqlen_is_not_cut() -> None:
    """66 positions have a transform of 80: a filter cut to 66 taps would miss a longer row's last ones."""
    with pytest.raises(ValueError, match=r"a row of 70 positions, more than the 66 .* pass max_seqlen=70"):
        functional.gated_conv(rand(1, 70, 3), rand(70, 3), cu_seqlens=offsets([70]), max_seqlen=66)
    op = HyenaOperator(4, 80)
    with pytest.raises(ValueError, match=r"a row of 70 positions, more than the 66 .* pass max_seqlen=70"):
        op(torch.randn(1, 136, 4), cu_seqlens=offsets([66, 70]), max_seqlen=66)


def test_a_row_longer_than_max_seqlen_names_both() -> None:
    with pytest.raises(ValueError, match=r"a row of 9 positions, more than the 8 .* pass max_seqlen=9"):
        functional.gated_conv(rand(1, 13, 3), rand(9, 3), cu_seqlens=offsets([4, 9]), max_seqlen=8)


@CAUSAL
@pytest.mark.parametrize("taps", [1, 3, 7, 20])
def test_toeplitz(taps: int, causal: bool) -> None:
    """Entry by entry, and with leading dimensions."""
    h = torch.stack([filters(taps, 2, causal), -filters(taps, 2, causal)])
    matrix = functional.toeplitz(h, 7, causal=causal)
    assert matrix.shape == (2, 2, 7, 7)
    first = 0 if causal else 1 - taps
    for t in range(7):
        for s in range(7):
            tap = t - s - first
            inside = 0 <= tap < h.size(1)
            assert torch.equal(matrix[..., t, s], h[:, tap] if inside else torch.zeros(2, 2).double())


@CAUSAL
@pytest.mark.parametrize("shared", ["channels", "groups", "heads"])
@pytest.mark.parametrize("value_filter", [False, True], ids=["released", "paper"])
@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_the_matrix_is_the_recurrence(order: int, value_filter: bool, shared: str, causal: bool) -> None:
    """``H v`` for every order, both recurrences, both directions, tied filters and heads."""
    count = order if value_filter else order - 1
    heads, groups = (2, 2) if shared == "heads" else (1, 3 if shared == "groups" else 6)
    gates, v = rand(2, order, 9, 6), rand(2, 9, 6, seed=1)
    h = torch.stack([filters(9, groups, causal).roll(i, 0) for i in range(count)]) if count else rand(0, 9, groups)
    d = rand(count, groups, seed=2)
    matrix = functional.hyena_matrix(gates, h, d, causal=causal, num_heads=heads)
    assert matrix.shape == (2, 6, 9, 9)
    want = oracle.recurrence([*gates.unbind(1), v], h, d, causal=causal, num_heads=heads)
    torch.testing.assert_close(torch.einsum("bcts,bsc->btc", matrix, v), want)
    if causal:
        assert not matrix.triu(1).any()


def test_the_matrix_without_d_and_with_one_a_channel() -> None:
    gates, h, v = rand(2, 2, 9, 6), rand(1, 9, 3), rand(2, 9, 6, seed=1)
    for d in (None, rand(1, 6, seed=2)):
        want = oracle.recurrence([*gates.unbind(1), v], h, torch.zeros(1, 6) if d is None else d)
        torch.testing.assert_close(torch.einsum("bcts,bsc->btc", functional.hyena_matrix(gates, h, d), v), want)


def test_the_matrix_is_differentiable() -> None:
    gates, h, d = rand(1, 2, 4, 2).requires_grad_(), rand(1, 4, 2).requires_grad_(), rand(1, 2).requires_grad_()
    assert torch.autograd.gradcheck(functional.hyena_matrix, (gates, h, d))


def test_masks_are_checked_and_applied() -> None:
    x, mask = rand(2, 9, 3), make_mask("random", 2, 9)
    y = functional.short_conv(x, rand(3, 3), rand(3), mask)
    assert not y[~mask].any()


def test_errors_name_the_numbers() -> None:
    x = torch.zeros(2, 7, 6)
    with pytest.raises(ValueError, match=r"h must be \(taps, channels\), or \(2, taps, channels\) .*got \(1, 7, 6\)"):
        functional.fft_conv(x, torch.zeros(1, 7, 6))
    with pytest.raises(ValueError, match=r"odd number of taps, lags .*; got 8"):
        functional.fft_conv(x, torch.zeros(8, 6), causal=False)
    with pytest.raises(ValueError, match=r"odd number of taps, lags .*; got 8"):
        functional.toeplitz(torch.zeros(8, 6), 7, causal=False)
    with pytest.raises(ValueError, match=r"6 channels cannot share 4 filters"):
        functional.fft_conv(x, torch.zeros(7, 4))
    with pytest.raises(ValueError, match=r"d must be \(6,\) .*got \(4,\)"):
        functional.fft_conv(x, torch.zeros(7, 6), torch.zeros(4))
    with pytest.raises(ValueError, match=r"3 gates take 2 filters, or 3 with a value filter; got 1"):
        functional.hyena_matrix(torch.zeros(1, 3, 7, 6), torch.zeros(1, 7, 6))
    with pytest.raises(ValueError, match=r"6 channels, 4 heads and 4 filter channels do not divide"):
        functional.hyena_matrix(torch.zeros(1, 2, 7, 6), torch.zeros(1, 7, 4), num_heads=4)
    with pytest.raises(ValueError, match=r"6 channels, 1 heads and 4 filter channels do not divide"):
        functional.hyena_matrix(torch.zeros(1, 2, 7, 6), torch.zeros(1, 7, 4))
    with pytest.raises(TypeError, match="casual"):
        functional.fft_conv(x, torch.zeros(7, 6), casual=True)
