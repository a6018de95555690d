"""The schedule of tiles: every pair of an input and a later output once and in time, and little at any step."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from hyena.conv import LongConv, schedule
from hyena.conv.tiled import Tiles, tile_spectra
from hyena.filters import ExplicitFilter

PARTS = 16


def steps(length: int, block: int) -> tuple[torch.Tensor, torch.Tensor, list[float]]:
    """How often each (output, input) pair is met, the latest time at which it is, and what each time costs."""
    met, time = torch.zeros(length, length), torch.full((length, length), -1.0)
    cost = []
    for t in range(block, length, block):
        shares = [(schedule.tile(t, block), 1.0)]
        shares += [(s.square, len(s.of(PARTS)) / PARTS) for s in schedule.between(t - block, t, length, block)]
        for square, share in shares:
            rows, columns = (slice(at, at + square.size) for at in (square.output, square.start))
            assert square.start >= 0
            assert square.start + square.size <= t
            met[rows, columns] += share
            time[rows, columns] = t if share > 0 else time[rows, columns]
        cost.append(sum(square.size * share for square, share in shares))
    return met, time, cost


@given(block=st.sampled_from([1, 2, 4]), length=st.integers(1, 200))
def test_each_pair_once_and_in_time(block: int, length: int) -> None:
    met, time, _ = steps(length, block)
    at = torch.arange(length)
    earlier = at[None] // block < at[:, None] // block
    torch.testing.assert_close(met, earlier.float())
    assert (time <= at[:, None]).all()


def test_no_step_costs_much_more_than_the_largest_tile_at_once() -> None:
    block, length = 2, 2048
    *_, cost = steps(length, block)
    scales = len({size for size, _ in schedule.kinds(length, block)})
    largest = max(size for size, _ in schedule.kinds(length, block))
    assert max(cost) <= schedule.AT_ONCE * block + (largest + 2 * block * scales) / PARTS
    assert max(cost) < length / 16  # half of it, if it all came at once


@given(
    block=st.sampled_from([1, 2, 4]),
    length=st.integers(1, 300),
    sizes=st.lists(st.sampled_from([1, 1, 1, 2, 3, 8, 16, 31, 32, 64, 128, 200]), min_size=1, max_size=12),
    filters=st.sampled_from([1, 2, 6]),
    group=st.sampled_from([1, 2, 6]),
    whole=st.integers(0, 40),
)
def test_pieces_of_any_size(block: int, length: int, sizes: list[int], filters: int, group: int, whole: int) -> None:
    """Against the convolution by definition, with the state's room longer than the row, or just as long."""
    torch.manual_seed(length)
    room = length + whole
    conv = LongConv(6, room, filter=ExplicitFilter, filter_channels=filters, dtype=torch.float64)
    taps, d = conv.filter(room)[0].detach(), conv.bias[0].detach()  # type: ignore[misc]
    with torch.no_grad():
        spectra = tile_spectra(taps[None], block, group if filters % group == 0 else filters)
        online = Tiles.of(taps[None], spectra, [6], (d,), block)
        x = torch.randn(2, length, 6, dtype=torch.float64)
        (memory,) = online.allocate(2)
        found, at = [], 0
        for size in sizes * length:
            if at == length:
                break
            n = min(size, length - at)
            found.append(online.extend(0, memory, at, x[:, at : at + n]))
            at += n
    h = taps.repeat_interleave(6 // filters, dim=1)
    lag = torch.arange(length)[:, None] - torch.arange(length)
    matrix = torch.where(lag[..., None] >= 0, h[lag.clamp_min(0)], 0.0)  # (out, in, C)
    want = torch.einsum("tsc,bsc->btc", matrix, x) + d * x
    torch.testing.assert_close(torch.cat(found, dim=1), want, rtol=1e-9, atol=1e-9)
