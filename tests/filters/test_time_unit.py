"""The unit of a filter's time, apart from how many taps may be asked for."""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from hyena import HyenaFilter
from hyena.filters import ExplicitFilter, LearnedEncoding, ModalFilter, PositionalEncoding


def by_definition(h: HyenaFilter, length: int, unit: int) -> Tensor:
    """Taps ``(F, length, C)`` in float64 with time in units of ``unit`` positions."""
    k = torch.arange(length, dtype=torch.float64)
    t, bands = k / (unit - 1), (h.encoding.emb_dim - 1) // 2
    f = torch.linspace(1e-4, bands - 1, bands, dtype=torch.float64)
    phase = 2 * math.pi * k[:, None] / unit * f
    x = torch.cat([t[:, None], phase.cos(), -phase.sin()], dim=1)
    freq = h.ffn.freq.double()
    for layer in h.ffn.hidden:
        x = torch.sin(freq * (x @ layer.weight.double().T + layer.bias.double()))
    window = torch.exp(-t[:, None] * h.window.deltas.double().abs()) + h.window.shift
    return ((x @ h.ffn.out.weight.double().T) * window).view(length, h.num_filters, h.channels).transpose(0, 1)


def make(l_max: int, **options: object) -> HyenaFilter:
    return HyenaFilter(4, l_max, 2, dtype=torch.float64, **options)


def test_weights_bring_their_unit_of_time() -> None:
    """Loaded at another l_max, they give the taps that they were trained for, and go on after them."""
    trained, longer = make(50), make(200)
    longer.load_state_dict(trained.state_dict())
    torch.testing.assert_close(longer(50), trained(50), rtol=0, atol=0)
    torch.testing.assert_close(longer(200), by_definition(trained, 200, 50))
    assert int(longer.encoding.time_unit) == 50
    again = make(200)
    again.load_state_dict(longer.state_dict(), assign=True)
    torch.testing.assert_close(again(200), longer(200), rtol=0, atol=0)


def test_the_unit_is_a_setting_too() -> None:
    h = make(200, time_unit=50)
    torch.testing.assert_close(h(200), by_definition(h, 200, 50))
    assert "time_unit=50" in repr(h)


@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_state_dicts_without_a_unit_load(assign: bool, device: str) -> None:
    """They are in the unit of the filter that they are loaded into."""
    old = {name: t for name, t in make(50).state_dict().items() if "time_unit" not in name}
    h = make(70, device=device)
    if device == "meta" and not assign:
        h = h.to_empty(device="cpu")
        h.encoding.time_unit.fill_(-7)  # whatever the memory held
    h.load_state_dict(old, assign=assign)
    torch.testing.assert_close(h(70), by_definition(h, 70, 70))


def test_extending() -> None:
    h = make(50)
    before = h(50)
    h.extend(200)
    torch.testing.assert_close(h(200), by_definition(h, 200, 50))
    torch.testing.assert_close(h(50), before, rtol=0, atol=0)
    h.extend(300, "stretch")
    torch.testing.assert_close(h(300), by_definition(h, 300, 75))
    h.extend(30)
    torch.testing.assert_close(h(30), by_definition(h, 30, 75))
    with pytest.raises(ValueError, match=r"31 taps .* l_max=30"):
        h(31)


def test_extending_counts_from_what_was_loaded() -> None:
    h = make(100)
    h.load_state_dict(make(50).state_dict())
    for copied in (copy.deepcopy(h), pickle.loads(pickle.dumps(h))):
        copied.extend(200, "stretch")
        torch.testing.assert_close(copied(200), by_definition(h, 200, 100))
        copied.reset_parameters()
        assert int(copied.encoding.time_unit) == 100
    h.extend(200)
    torch.testing.assert_close(h(200), by_definition(h, 200, 50))


def test_stretched_is_what_the_weights_give_at_the_longer_l_max() -> None:
    h, longer = make(50), make(200)
    h.extend(200, "stretch")
    longer.load_state_dict(h.state_dict())
    torch.testing.assert_close(h(200), by_definition(longer, 200, 200))


@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("cast", [lambda m: m.half(), lambda m: m.bfloat16(), lambda m: m.to(torch.float16).float()])
def test_casts_leave_the_unit(cast: Callable[[nn.Module], nn.Module], keep: bool) -> None:
    h = HyenaFilter(4, 100_001)
    h.keep_float32 = keep
    assert int(cast(h).encoding.time_unit) == 100_001
    assert "time_unit=100001" in repr(h)


def test_tables_end() -> None:
    h = HyenaFilter(4, 20, encoding=LearnedEncoding(33, 20))
    for l_max, mode in ((21, "continue"), (40, "stretch"), (10, "stretch")):
        with pytest.raises(ValueError, match=rf"table of 20 positions.* l_max={l_max} .*'{mode}'"):
            h.extend(l_max, mode)
    want = h(10)
    h.extend(10)
    assert torch.equal(h(10), want)


class Plain(nn.Module):
    """An encoding that says nothing about other lengths."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = PositionalEncoding(33, 20)

    def forward(self, *args: object) -> tuple[Tensor, Tensor]:
        return self.inner(*args)


def test_an_encoding_has_to_say_how_it_is_extended() -> None:
    h = HyenaFilter(4, 20, encoding=Plain())
    with pytest.raises(ValueError, match=r"encoding \(Plain\) .* l_max=40 instead of 20 .*extend\(old, new, mode\)"):
        h.extend(40)


def test_explicit_taps_belong_to_positions() -> None:
    h = ExplicitFilter(4, 20, taps=7)
    want = h(20)
    h.extend(100)
    assert torch.equal(h(100), want)
    with pytest.raises(ValueError, match=r"7 taps .* from l_max=100 to 200; use mode='continue'"):
        h.extend(200, "stretch")


@pytest.mark.parametrize("real", [False, True])
def test_modes_are_slowed_down(real: bool) -> None:
    h = ModalFilter(4, 20, 2, modes=3, real=real, dtype=torch.float64)
    before = h(20)
    h.extend(58)
    torch.testing.assert_close(h(58)[:, :20], before)
    h.extend(58 * 3, "stretch")
    torch.testing.assert_close(h(58 * 3)[:, 1:58:3], before[:, 1:])


def test_wrong_arguments_are_named() -> None:
    with pytest.raises(ValueError, match=r"mode must be one of 'continue', 'stretch', got 'longer'"):
        make(20).extend(40, "longer")
    with pytest.raises(TypeError, match=r"l_max must be an int, got 40.0"):
        make(20).extend(40.0)
    with pytest.raises(ValueError, match=r"l_max >= 1, got 0"):
        make(20).extend(0)
