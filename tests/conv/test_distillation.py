"""Modal filters fitted to long ones: errors as reported, stable, and steps of constant size."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import hyena
from hyena import HyenaOperator
from hyena.conv import distillation_errors
from hyena.filters import ModalFilter
from hyena.filters.modal_fit import fit
from hyena.models import CausalLM, CausalLMConfig


def modal_taps(*shape: int, taps: int) -> Tensor:
    """Filters that are sums of decaying oscillations: (F, K, G)."""
    filters, channels, _ = shape
    at = torch.arange(taps, dtype=torch.float64)
    decay, angle, phase = (torch.rand(*shape, 1, dtype=torch.float64) for _ in range(3))
    decay = 0.01 + 0.1 * decay
    h = torch.exp(-decay * at) * torch.cos(3 * angle * at + 6 * phase)  # (F, G, m, K)
    assert h.shape[:2] == (filters, channels)
    return h.sum(2).transpose(1, 2)


@pytest.mark.parametrize("taps", [40, 400, 3000])
def test_a_modal_filter_is_found_again(taps: int) -> None:
    h = modal_taps(2, 3, 2, taps=taps)
    error = fit(h, 2).error
    assert error.shape == (2, 3)
    assert error.max() < 1e-4


def test_errors_are_what_they_say_and_fall_with_the_order() -> None:
    op = HyenaOperator(16, 64, order=3, dtype=torch.float64).eval()
    h, errors = op.conv.filter(64), []
    for modes in (1, 4, 16, 33):
        small = hyena.distill(op, modes=modes)
        assert isinstance(small.conv.filter, ModalFilter)
        assert small.conv.filter.num_modes == modes
        assert "approximate" in repr(small)
        (error,) = distillation_errors(small).values()
        want = (small.conv.filter(64) - h).norm(dim=1) / h.norm(dim=1)
        torch.testing.assert_close(error, want, atol=1e-8, rtol=1e-3)
        errors.append(error.mean().item())
    assert errors[0] > 2 * errors[1] > 4 * errors[2]
    assert errors[3] < 1e-2
    assert isinstance(op.conv.filter, hyena.HyenaFilter)


def test_the_order_for_an_error() -> None:
    op = HyenaOperator(8, 64).eval()
    for tolerance in (0.5, 0.1):
        small = hyena.distill(op, tolerance=tolerance)
        assert small.conv.filter.error.max() <= tolerance
        if small.conv.filter.num_modes > 1:
            assert hyena.distill(op, modes=small.conv.filter.num_modes // 2).conv.filter.error.max() > tolerance


def test_poles_cannot_leave_the_unit_disc() -> None:
    filters = ModalFilter(4, 5000, modes=8)
    with torch.no_grad():
        for p in filters.parameters():
            p.copy_(10 * torch.randn_like(p))
    assert filters(5000).isfinite().all()
    decay = filters.modes().decay
    assert (decay >= 0).all()


def test_a_distilled_model_steps_and_generates() -> None:
    model = CausalLM(CausalLMConfig(vocab_size=11, l_max=64, d_model=16, num_layers=2), dtype=torch.float64).eval()
    small = hyena.distill(model)
    assert set(distillation_errors(small)) == {"blocks.0.mixer.conv", "blocks.1.mixer.conv"}
    tokens = torch.randint(11, (2, 64))
    want = small(tokens)
    state, got = small.init_state(2), []
    for part in tokens.split([20, 1, 1, 1, 41], dim=1):
        logits, state = small.prefill(part, state)
        got.append(logits)
    torch.testing.assert_close(torch.cat(got, dim=1), want)
    assert (want - model(tokens)).abs().max() < 0.1 * want.abs().max()
    assert len(small.generate(tokens[:, :5], 20, temperature=0)) == 2


def test_the_state_does_not_grow() -> None:
    sizes = []
    for l_max in (64, 1024):
        small = HyenaOperator(8, l_max, filter=ModalFilter(8, l_max, modes=4))
        state = small.init_state(1)
        assert small.state_size(1).rows == sum(t.numel() * t.element_size() for t in state.rows().values())
        sizes.append(small.state_size(1).rows)
    assert sizes[0] == sizes[1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dtypes_and_loading(dtype: torch.dtype) -> None:
    op = HyenaOperator(8, 64).to(dtype).eval()
    small = hyena.distill(op, modes=8)
    assert small.conv.filter.angle.dtype == torch.float32
    again = HyenaOperator(8, 64, filter=ModalFilter(8, 64, modes=8), dtype=dtype).to(dtype).eval()
    again.load_state_dict(small.state_dict())
    u = torch.randn(1, 64, 8).to(dtype)
    assert torch.equal(again(u), small(u))


def test_wrong_arguments() -> None:
    op = HyenaOperator(8, 32)
    for options, message in [
        ({"modes": 4, "tolerance": 0.1}, "not both"),
        ({"modes": 0}, "modes >= 1, got 0"),
        ({"modes": 1000}, "modes=1000 are more than filters of l_max=32 can have: pass 17 or less"),
        ({"tolerance": 1.5}, "tolerance"),
    ]:
        with pytest.raises(ValueError, match=message):
            hyena.distill(op, **options)
    for modes in (2.5, True, "4"):
        with pytest.raises(TypeError, match=f"modes must be an int, got {modes!r}"):
            hyena.distill(op, modes=modes)
    with pytest.raises(ValueError, match="no long filters"):
        hyena.distill(torch.nn.Linear(2, 2))
    with pytest.raises(ValueError, match="no long filters"):
        hyena.distill(HyenaOperator(8, 32, order=1))
    with pytest.raises(ValueError, match="causal=False"):
        hyena.distill(HyenaOperator(8, 32, causal=False))
    with pytest.raises(ValueError, match="longer than this one's l_max=32"):
        hyena.distill(op, modes=2).conv.filter(33)
    with pytest.raises(ValueError, match="modes >= 1, got 0"):
        ModalFilter(8, 32, modes=0)
