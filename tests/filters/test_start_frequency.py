"""The frequency that sines start at: how long the waves of new taps are, whatever the length."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from hyena.filters import FiLMFilter, FiLMFilterND, HyenaFilter, HyenaFilterND, PairedFilter
from hyena.filters.ffn import HIGHEST, WAVELENGTH, SineFFN, start_frequency


def cycles(taps: Tensor) -> float:
    """Root mean square frequency of taps ``(K, C)`` without their means, in cycles over the row."""
    power = torch.fft.rfft(taps - taps.mean(0), dim=0).abs().square().sum(1)
    return (torch.arange(len(power)).square() * power).sum().div(power.sum()).sqrt().item()


def without_window(filter: HyenaFilter) -> Tensor:
    with torch.no_grad():
        filter.window.deltas.zero_()
        return filter(filter.l_max)[0]


@pytest.mark.parametrize("emb_dim", [9, 33, 65])
@pytest.mark.parametrize("inner_layers", [1, 2, 3])
def test_the_law(emb_dim: int, inner_layers: int) -> None:
    """S sine layers make ``b (freq / sqrt(6))^S`` cycles of b."""
    torch.manual_seed(0)
    bands = torch.arange((emb_dim - 1) // 2).double()
    b = bands.square().mean().sqrt().item()
    freq = math.sqrt(6) * (100 / b) ** (1 / (1 + inner_layers))
    filters = [HyenaFilter(16, 4096, emb_dim=emb_dim, inner_layers=inner_layers, freq=freq) for _ in range(3)]
    found = sum(cycles(without_window(filter)) for filter in filters) / 3
    assert found == pytest.approx(100, rel=0.15)
    assert start_frequency(100 * WAVELENGTH, emb_dim, 1 + inner_layers) == pytest.approx(min(HIGHEST, freq), rel=1e-3)


@pytest.mark.parametrize("length", [256, 1024, 8192])
def test_waves_of_new_taps_have_one_length(length: int) -> None:
    torch.manual_seed(0)
    found = sum(cycles(without_window(HyenaFilter(16, length))) for _ in range(3)) / 3
    assert length / found == pytest.approx(WAVELENGTH, rel=0.25)


def test_the_time_unit_counts_not_the_longest_input() -> None:
    assert HyenaFilter(2, 4096, time_unit=256).ffn.initial_freq == HyenaFilter(2, 256).ffn.initial_freq
    assert HyenaFilter(2, 1 << 20).ffn.initial_freq == HIGHEST
    assert HyenaFilter(2, 4096, freq=3.0).ffn.initial_freq == 3.0


@pytest.mark.parametrize("length", [1, 2, 3, 7])
def test_short_rows(length: int) -> None:
    filter = HyenaFilter(2, length)
    assert 0 < filter.ffn.initial_freq < 3
    assert filter(length).isfinite().all()


def test_every_filter_of_sines_has_the_rule() -> None:
    want = start_frequency(300, 33, 3)
    assert FiLMFilter(2, 300).ffn.initial_freq == want
    paired = PairedFilter(2, 300, causal=False)
    assert paired.ffn.initial_freq == paired.behind.initial_freq == want
    for cls in (HyenaFilterND, FiLMFilterND):
        assert cls(2, (200, 400)).ffn.initial_freq == want


@pytest.mark.parametrize(
    ("numbers", "names"), [({"time_unit": 0}, "time_unit"), ({"inner_layers": -1}, "inner_layers")]
)
def test_numbers_that_make_no_filter_are_named(numbers: dict[str, int], names: str) -> None:
    with pytest.raises(ValueError, match=names):
        HyenaFilter(2, 16, **numbers)


def test_an_ffn_of_ones_own_needs_no_frequency() -> None:
    ffn = SineFFN(33, 4, 2, freq=2.5)
    assert HyenaFilter(2, 16, ffn=ffn).ffn.initial_freq == 2.5
