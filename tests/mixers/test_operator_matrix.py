"""``to_matrix``: the matrix that the operator is for an input."""

from __future__ import annotations

import pytest
import torch

from helpers.cases import make_mask, rand
from helpers.operators import CONFIGS, D, build

CONFIG = pytest.mark.parametrize("config", [name for name in CONFIGS if name != "head-mixing"])


@CONFIG
@pytest.mark.parametrize("mask", ["none", "random"])
def test_the_matrix_times_the_value_is_the_fast_path(config: str, mask: str) -> None:
    m, u, keep = build(config).double(), rand(2, 22, D), make_mask(mask, 2, 22)
    matrix = m.to_matrix(u, keep)
    assert matrix.shape == (2, m.width, 22, 22)
    v = m.short(m.in_proj(u), keep).split(m.width, dim=2)[-1]
    y = torch.einsum("bcts,bsc->btc", matrix, v)
    y = y if m.activation is None else m.activation(y)
    torch.testing.assert_close(m.out_proj(y), m(u, keep), rtol=1e-11, atol=1e-11)


@CONFIG
def test_it_is_triangular_exactly_where_it_is_causal(config: str) -> None:
    m, u = build(config).double(), rand(2, 22, D)
    above = m.to_matrix(u).triu(1)
    assert above.any() == (not m.causal)


def test_hidden_positions_have_no_row_and_no_column() -> None:
    m, u, keep = build("two-sided").double(), rand(2, 22, D), make_mask("random", 2, 22)
    matrix = m.to_matrix(u, keep)
    hidden = ~keep
    assert not matrix.transpose(1, 2)[hidden].any()
    v = m.short(m.in_proj(u), keep).split(m.width, dim=2)[-1]
    assert not v[hidden].any()


def test_blocks_do_not_reach_each_other() -> None:
    matrix = build("blocks").double().to_matrix(rand(1, 22, D))
    assert not matrix[..., :11, 11:].any()
    assert not matrix[..., 11:, :11].any()


def test_it_is_differentiable_and_keeps_the_dtype() -> None:
    m = build("default")
    u = rand(1, 9, D).float().requires_grad_()
    matrix = m.to_matrix(u)
    matrix.square().sum().backward()
    assert u.grad.isfinite().all()
    assert m.conv.filter.ffn.out.weight.grad.abs().sum() > 0
    assert m.bfloat16().to_matrix(u.bfloat16()).dtype == torch.bfloat16


def test_mixed_heads_have_no_matrix() -> None:
    with pytest.raises(ValueError, match="post_order_ffn"):
        build("head-mixing").to_matrix(rand(1, 9, D).float())


def test_its_length_is_checked() -> None:
    with pytest.raises(ValueError, match=r"a row of 97 positions is longer than this HyenaOperator's l_max=96"):
        build("default").to_matrix(torch.zeros(1, 97, D))
