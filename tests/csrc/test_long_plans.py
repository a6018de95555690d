"""Transforms that are too long for a GPU's shared memory: they go to the fallback, with a spectrum of its own."""

from __future__ import annotations

import pytest
import torch

from hyena import ops
from hyena.ops._extension import EXTENSION
from hyena.ops._layout import points_of
from hyena.ops.spectrum import is_of_kernels, taps_of

pytestmark = pytest.mark.skipif(
    EXTENSION.instructions != "emulated CUDA", reason="these are not the CUDA kernels on the host"
)


@pytest.mark.parametrize(("length", "of_kernels"), [(1100, True), (5000, False)])
def test_a_transform_without_a_plan(monkeypatch: pytest.MonkeyPatch, length: int, of_kernels: bool) -> None:
    monkeypatch.setenv("HYENA_EMULATED_SHARED", "6400")  # 256 points in a block, 16 x 256 in columns and rows
    channels, taps = 3, 40
    z = torch.randn(2, length, 3 * channels, dtype=torch.float64)
    weight, h = torch.randn(3 * channels, 3, dtype=torch.float64), torch.randn(1, taps, channels, dtype=torch.float64)
    d = torch.randn(1, channels, dtype=torch.float64)

    def step(dtype: torch.dtype) -> tuple[torch.Tensor, list[torch.Tensor]]:
        leaves = [t.to(dtype).requires_grad_() for t in (z, weight, h, d)]
        spectrum = ops.filter_spectrum(leaves[2], ops.transform_length(length))
        y = ops.recurrence(leaves[0], leaves[1], None, spectrum, leaves[3])
        y.square().sum().backward()
        return spectrum.detach(), [y.detach(), *(t.grad for t in leaves if t.grad is not None)]

    (spectrum, got), (_, want) = step(torch.float32), step(torch.float64)
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-4, atol=1e-5 * float(b.abs().max()))
    assert is_of_kernels(spectrum) == of_kernels
    points = points_of(spectrum.size(-2) - 1)
    torch.testing.assert_close(taps_of(spectrum)[:, points - 1 : points - 1 + taps].double(), h, rtol=1e-4, atol=1e-5)
