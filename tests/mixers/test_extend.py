"""Longer rows for a trained operator: what becomes of its filters, and a warm-up of the length while it trains."""

from __future__ import annotations

import copy

import pytest
import torch

from hyena import HyenaOperator
from hyena.checkpoints.safari.blocks import SafariOperator

D = 8


def test_continued_filters_leave_what_was() -> None:
    op = HyenaOperator(D, 32, order=3, dtype=torch.float64).eval()
    u = torch.randn(2, 100, D, dtype=torch.float64)
    before, taps = op(u[:, :32]), op.conv.filter(32)
    op.extend(100)
    assert op.l_max == 100
    torch.testing.assert_close(op(u[:, :32]), before, rtol=0, atol=1e-12)
    torch.testing.assert_close(op(u)[:, :32], before, rtol=0, atol=1e-12)
    torch.testing.assert_close(op.conv.filter(100)[:, :32], taps, rtol=0, atol=1e-13)
    state = op.init_state(2)
    out = [op.prefill(u[:, :70], state)[0], op.prefill(u[:, 70:], state)[0]]
    torch.testing.assert_close(torch.cat(out, dim=1), op(u), rtol=0, atol=1e-11)


def test_stretched_filters_keep_their_shape() -> None:
    """As if they had been made for the longer rows: the released code at another l_max."""
    op, made = HyenaOperator(D, 32, dtype=torch.float64), HyenaOperator(D, 64, dtype=torch.float64)
    made.conv.filter.ffn.load_state_dict(op.conv.filter.ffn.state_dict())
    op.extend(64, mode="stretch")
    torch.testing.assert_close(op.conv.filter(64), made.conv.filter(64), rtol=0, atol=1e-12)


def test_the_unit_of_time_is_saved_and_loading_says_what_it_meets() -> None:
    trained = HyenaOperator(D, 32, dtype=torch.float64).eval()
    u = torch.randn(1, 20, D, dtype=torch.float64)
    longer = HyenaOperator(D, 64, dtype=torch.float64).eval()
    longer.load_state_dict(trained.state_dict())
    torch.testing.assert_close(longer(u), trained(u), rtol=0, atol=1e-12)
    grown = copy.deepcopy(trained)
    grown.extend(64)
    wide = torch.randn(1, 64, D, dtype=torch.float64)
    torch.testing.assert_close(longer(wide), grown(wide), rtol=0, atol=1e-12)


def test_the_error_of_a_long_row_leads_to_what_works() -> None:
    op = HyenaOperator(D, 32)
    u = torch.randn(1, 40, D)
    with pytest.raises(ValueError, match=r"40 positions .* l_max=32; extend\(l_max=40\)"):
        op(u)
    op.extend(l_max=40)
    assert op(u).shape == u.shape


def test_a_length_warm_up() -> None:
    op = HyenaOperator(D, 16)
    optimizer = torch.optim.SGD(op.parameters(), 1e-2)
    for l_max in (16, 32, 64):
        op.extend(l_max)
        op(torch.randn(2, l_max, D)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    assert op.l_max == 64


def test_blocks_and_wrong_modes() -> None:
    op = SafariOperator(D, 32, num_blocks=2)
    with pytest.raises(ValueError, match="l_max=33 is not a multiple of num_blocks=2"):
        op.extend(33)
    op.extend(64)
    assert op(torch.randn(1, 64, D)).shape == (1, 64, D)
    with pytest.raises(ValueError, match="mode"):
        HyenaOperator(D, 32).extend(64, mode="repeat")

    class Table(torch.nn.Module):
        def forward(self, length: int) -> torch.Tensor:
            return torch.zeros(1, length, D)

    with pytest.raises(ValueError, match=r"Table, which has no extend"):
        HyenaOperator(D, 32, filter=Table()).extend(64)
