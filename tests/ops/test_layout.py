"""Memory order, dtypes and transform lengths."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hyena import ops
from hyena.ops._layout import empty_in_order_of, is_channel_major, points_of, to_order_of


def smooth(size: int) -> bool:
    for factor in (2, 3, 5):
        while size % factor == 0:
            size //= factor
    return size == 1


@given(length=st.integers(1, 2_000_000))
def test_a_transform_length_is_fast_and_near(length: int) -> None:
    size = ops.transform_length(length)
    assert length <= size <= length + length // 8 + 24
    assert smooth(size)
    assert size <= 64 or size % 16 == 0
    assert points_of(size) == size


@given(size=st.integers(1, 200_000))
def test_points_fit_and_suffice(size: int) -> None:
    """The longest fast length not above ``size``; the next length up would not fit."""
    points = points_of(size)
    assert points <= size
    assert points == size or ops.transform_length(points + 1) > size


@given(length=st.integers(1, 200_000))
def test_traced_room_holds_the_row(length: int) -> None:
    """What a traced graph asks for any length has a fast length in it that holds the row."""
    assert points_of(length + length // 8 + 24) >= length


def test_known_lengths() -> None:
    pairs = {1: 1, 2: 2, 7: 8, 61: 64, 64: 64, 65: 80, 127: 128, 1009: 1024, 1024: 1024, 8192: 8192, 8209: 8640}
    assert {length: ops.transform_length(length) for length in pairs} == pairs


@pytest.mark.parametrize("length", [0, -3])
def test_no_position_is_an_error(length: int) -> None:
    with pytest.raises(ValueError, match=f"at least one position, got length={length}"):
        ops.transform_length(length)


def test_compute_dtype() -> None:
    for dtype, wide in ((torch.float64, torch.float64), (torch.float32, torch.float32), (torch.float16, torch.float32)):
        assert ops.compute_dtype(torch.empty(0, dtype=dtype)) == wide
    assert ops.compute_dtype(torch.empty(0, dtype=torch.bfloat16)) == torch.float32


def test_uninitialised_memory_is_filled_with_nan(nan_filled: None, device: str) -> None:
    """So that a test sees what an op leaves unwritten; kernels get their memory the same way."""
    assert torch.empty(5, device=device).isnan().all()
    assert empty_in_order_of(torch.zeros(2, 3, 5, device=device).transpose(1, 2), 4).isnan().all()


def test_memory_order() -> None:
    natural, major = torch.zeros(2, 5, 3), torch.zeros(2, 3, 5).transpose(1, 2)
    assert not is_channel_major(natural)
    assert is_channel_major(major)
    assert is_channel_major(torch.zeros(2, 7, 9).transpose(1, 2)[:, 1:6, ::2])
    assert not is_channel_major(torch.zeros(2, 1, 5).transpose(1, 2))
    assert not is_channel_major(torch.zeros(2, 5, 1).transpose(1, 2))
    for z in (natural, major):
        y = empty_in_order_of(z, 4)
        assert y.shape == (2, 5, 4)
        assert is_channel_major(y) == is_channel_major(z)
        assert not is_channel_major(y) or y.stride() == (4 * 8, 1, 8), "rows begin at multiples of 8 positions"
        for x in (torch.ones(2, 5, 4), torch.ones(2, 4, 5).transpose(1, 2)):
            moved = to_order_of(x, z.half())
            assert moved.stride() == y.stride()
            assert moved.dtype == torch.float16
            assert torch.equal(moved, x.half())
