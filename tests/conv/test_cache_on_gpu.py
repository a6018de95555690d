"""Kept spectra on a GPU, where a fused optimizer's step moves no version counter."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hyena import HyenaOperator

pytestmark = pytest.mark.cuda


def fresh(m: HyenaOperator, x: Tensor) -> Tensor:
    """What ``m`` computes without a cache: with gradients enabled none is used."""
    with torch.enable_grad():
        return m(x).detach()


def test_a_forward_with_gradients_forgets_the_spectra() -> None:
    """The step that may follow it need not leave a trace on the weights: a fused one does not."""
    m, x = HyenaOperator(8, 200, device="cuda").eval(), torch.randn(2, 20, 8, device="cuda")
    with torch.no_grad():
        before = m(x)
    m(x).sum().backward()
    optimizer = torch.optim.AdamW(m.parameters(), lr=0.1, fused=True)
    optimizer.step()
    optimizer.zero_grad()
    with torch.no_grad():
        torch.testing.assert_close(m(x), fresh(m, x), rtol=1e-4, atol=1e-5)
        assert not torch.equal(m(x), before)


def test_nothing_is_kept_of_weights_with_gradients() -> None:
    m, x = HyenaOperator(8, 200, device="cuda").eval(), torch.randn(2, 20, 8, device="cuda")
    optimizer = torch.optim.AdamW(m.parameters(), lr=0.1, fused=True)
    m(x).sum().backward()
    for _ in range(2):
        with torch.no_grad():
            before = m(x)
        optimizer.step()
        with torch.no_grad():
            torch.testing.assert_close(m(x), fresh(m, x), rtol=1e-4, atol=1e-5)
            assert not torch.equal(m(x), before)
