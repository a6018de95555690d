"""Long convolutions in matrix products, against explicit sums in float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from helpers import oracle
from helpers.cases import rand
from hyena.export.transform import long_conv, sides


@pytest.mark.parametrize("causal", [True, False])
@given(length=st.integers(1, 300), taps=st.integers(1, 300), groups=st.sampled_from([1, 2, 4]))
def test_is_the_convolution(causal: bool, length: int, taps: int, groups: int) -> None:
    taps = min(taps, length)
    x, h = rand(2, length, 4), rand(taps if causal else 2 * taps - 1, groups, seed=1)
    got = long_conv(x, h if causal else sides(h[None])[0])
    torch.testing.assert_close(got, oracle.long_conv(x, h, causal=causal), rtol=1e-12, atol=1e-12 * max(taps, 1))


@pytest.mark.parametrize("length", [1000, 1024, 4096, 4097, 8209])
def test_rounding_in_float32(length: int) -> None:
    x, h = rand(1, length, 2), rand(length, 2, seed=1) / length**0.5
    got = long_conv(x.float(), h.float())
    torch.testing.assert_close(got.double(), oracle.long_conv(x, h), rtol=0, atol=5e-6)


def test_the_future_is_not_seen() -> None:
    """Beyond rounding, which is relative to the loudest input of the row."""
    x, h = rand(1, 100, 1), rand(100, 1, seed=1)
    later = x.clone()
    later[:, 60:] += 1
    torch.testing.assert_close(long_conv(x, h)[:, :60], long_conv(later, h)[:, :60], rtol=0, atol=1e-13)
