"""``hyena::filter_spectrum``. What stands where in a spectrum is its backend's own affair: how it convolves is tested
with ``gated_conv`` and ``recurrence``, here only what every backend owes.
"""

from __future__ import annotations

from functools import partial
from unittest import mock

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from helpers.cases import DTYPES, Tier, rand
from hyena import ops
from hyena.ops._layout import points_of
from hyena.ops.spectrum import taps_of


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("causal", [True, False], ids=["causal", "two-sided"])
def test_shape_and_dtype(tier: Tier, dtype: torch.dtype, causal: bool) -> None:
    h = rand(3, 7, 5).to(tier.device, dtype)
    with tier():
        spectrum = ops.filter_spectrum(h, 10, causal)
    assert spectrum.shape == (3, 5, 12, 2)
    assert spectrum.dtype == torch.promote_types(dtype, torch.float32)
    assert spectrum.is_contiguous()
    assert spectrum.isfinite().all()


@pytest.mark.parametrize("length", [27, 33, 64, 67, 80, 1009, 8209])
def test_filters_are_aligned(tier: Tier, length: int) -> None:
    """Each begins at a multiple of 16 bytes, and the transform is as long as it would be."""
    size = ops.transform_length(length)
    with tier():
        spectrum = ops.filter_spectrum(rand(2, 5, 3).to(tier.device, torch.float32), size)
    assert all(row.data_ptr() % 16 == 0 for row in spectrum.flatten(0, 1))
    assert points_of(spectrum.size(-2) - 1) == size


@pytest.mark.parametrize("size", [8, 11, 66, 67, 80, 83])
def test_the_gradient_of_a_spectrum_of_any_room(tier: Tier, size: int) -> None:
    """Along a direction in every entry, those beyond the transform too."""
    v, h = rand(2, 8, 3).to(tier.device), rand(1, 5, 3, seed=1).to(tier.device)
    with tier():
        spectrum = torch.ops.hyena.filter_spectrum(h, size, True)[0].requires_grad_()

        def loss(s: torch.Tensor) -> torch.Tensor:
            return ops.gated_conv(v, s).pow(3).sum()

        (g,) = torch.autograd.grad(loss(spectrum), spectrum)
        along = rand(*spectrum.shape, seed=2).to(tier.device)
        step = 1e-6 * along
        found = (loss(spectrum + step) - loss(spectrum - step)) / 2e-6
    torch.testing.assert_close((g * along).sum(), found.detach(), rtol=1e-6, atol=1e-4)


@pytest.mark.parametrize("causal", [True, False], ids=["causal", "two-sided"])
def test_it_is_linear_and_sees_every_tap(tier: Tier, causal: bool) -> None:
    """Distinct taps have distinct spectra, and strides do not matter."""
    h = rand(4, 3, 9).to(tier.device).transpose(1, 2)[:, :, ::2]  # (4, 9, 2), no stride is 1
    with tier():
        whole = ops.filter_spectrum(h, 16, causal)
        parts = sum(
            ops.filter_spectrum(h * (torch.arange(9, device=tier.device) == k)[:, None], 16, causal) for k in range(9)
        )
        torch.testing.assert_close(whole, parts)
        torch.testing.assert_close(whole, ops.filter_spectrum(h.contiguous(), 16, causal), rtol=0, atol=0)
        jacobian = torch.autograd.functional.jacobian(lambda x: ops.filter_spectrum(x, 16, causal), h[:1, :, :1])
    assert torch.linalg.matrix_rank(jacobian.reshape(-1, 9)) == 9


@pytest.mark.parametrize("causal", [True, False], ids=["causal", "two-sided"])
@pytest.mark.parametrize("size", [5, 8, 67])
def test_gradgradcheck(tier: Tier, causal: bool, size: int) -> None:
    h = rand(2, 5, 3).to(tier.device).requires_grad_()
    fn = partial(ops.filter_spectrum, size=size, causal=causal)
    with tier():
        assert torch.autograd.gradcheck(fn, h)
        assert torch.autograd.gradgradcheck(fn, h)


@pytest.mark.parametrize("causal", [True, False], ids=["causal", "two-sided"])
def test_opcheck(device: str, causal: bool) -> None:
    h = rand(3, 2, 5).to(device, torch.float32).transpose(1, 2).requires_grad_()
    torch.library.opcheck(torch.ops.hyena.filter_spectrum.default, (h, 8, causal))
    ds = torch.ones(3, 2, 9, 2, device=device)
    torch.library.opcheck(torch.ops.hyena.filter_spectrum_backward.default, (ds, h.detach(), 8, causal))


def test_errors_name_the_numbers() -> None:
    with pytest.raises(ValueError, match=r"shape \(F, K, G\), got torch.float32 of shape \(7, 3\)"):
        ops.filter_spectrum(torch.zeros(7, 3), 8)
    with pytest.raises(ValueError, match=r"floating point.*got torch.int64"):
        ops.filter_spectrum(torch.zeros(1, 7, 3, dtype=torch.long), 8)
    with pytest.raises(ValueError, match=r"a filter of 9 lags does not fit a transform of 8 positions: cut it to 8"):
        ops.filter_spectrum(torch.zeros(1, 9, 3), 8)
    with pytest.raises(ValueError, match=r"a filter of 9 lags does not fit a transform of 8"):
        ops.filter_spectrum(torch.zeros(1, 17, 3), 8, False)
    with pytest.raises(ValueError, match=r"odd number of taps.*got 8"):
        ops.filter_spectrum(torch.zeros(1, 8, 3), 8, False)


@pytest.mark.parametrize("size", [5, 16, 67])
@pytest.mark.parametrize("causal", [True, False], ids=["causal", "two-sided"])
def test_the_taps_come_back(tier: Tier, causal: bool, size: int) -> None:
    h = rand(2, 5, 3).to(tier.device)
    with tier():
        got = taps_of(ops.filter_spectrum(h, size, causal))
    middle = got.size(1) // 2  # lag 0
    first = middle if causal else middle - 2
    want = torch.zeros_like(got)
    want[:, first : first + 5] = h
    torch.testing.assert_close(got, want)


def test_a_spectrum_on_another_device(device: str) -> None:
    h, v = rand(2, 9, 3), rand(1, 5, 3)
    spectrum = ops.filter_spectrum(h, 5, causal=False)
    moved = ops.move_spectrum(spectrum, device)
    assert moved.device.type == device
    assert moved.shape == spectrum.shape
    for one, other in zip(spectrum, moved, strict=True):
        torch.testing.assert_close(ops.gated_conv(v.to(device), other).cpu(), ops.gated_conv(v, one))
    assert ops.move_spectrum(spectrum, "meta").shape == spectrum.shape
    empty = ops.filter_spectrum(rand(0, 9, 3), 5, causal=False)
    assert ops.move_spectrum(empty, device).shape == empty.shape


def test_a_spectrum_is_made_anew_on_another_device_of_its_kind() -> None:
    """GPUs of two models have layouts of their own."""
    with FakeTensorMode(), mock.patch("hyena.ops.spectrum.taps_of") as taps:
        spectrum = torch.empty(2, 3, 6, 2, device="cuda:0")
        taps.return_value = torch.empty(2, 9, 3, device="cuda:0")
        assert ops.move_spectrum(spectrum, "cuda:0") is spectrum
        assert taps.call_count == 0
        assert ops.move_spectrum(spectrum, "cuda:1").device == torch.device("cuda:1")
        assert taps.call_count == 1
