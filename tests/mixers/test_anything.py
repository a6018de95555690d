"""Operators of any settings on any rows: values, gradients and steps against the definition.

``HYPOTHESIS_PROFILE=search`` draws a hundred times as many, other ones each time.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from helpers.cases import MASKS, make_mask, offsets, rand
from helpers.operators import expected
from hyena import HyenaOperator
from hyena.conv import LongConv
from hyena.filters import ExplicitFilter, HyenaFilter, ModalFilter

L_MAX = 50
# Of float64: transforms and sums in another order, in units of outputs of about 1, through a recurrence of order 4.
CLOSE = 1e-9


@st.composite
def operators(draw: st.DrawFn, *, causal: bool | None = None) -> HyenaOperator:
    heads = draw(st.sampled_from([1, 1, 1, 2, 4]))
    two_sided = causal is None and draw(st.booleans())
    settings: dict[str, Any] = {
        "order": draw(st.integers(1, 4)),
        "num_heads": heads,
        "short_taps": draw(st.integers(1, 5)),
        "value_filter": draw(st.booleans()),
        "causal": not two_sided,
        "inner_factor": draw(st.sampled_from([1, 1, 2])),
        "bias": draw(st.booleans()),
        "activation": draw(st.sampled_from([None, "gelu"])),
    }
    if heads == 1:
        settings["filter_groups"] = draw(st.sampled_from([None, None, 1, 2, 4]))
    kinds = [
        partial(HyenaFilter, width=draw(st.integers(1, 6)), emb_dim=draw(st.sampled_from([3, 5]))),
        partial(ExplicitFilter, taps=draw(st.integers(1, L_MAX))),
    ]
    if not two_sided:
        kinds.append(partial(ModalFilter, modes=draw(st.integers(1, 4)), real=draw(st.booleans())))
    settings["filter"] = draw(st.sampled_from(kinds))
    torch.manual_seed(draw(st.integers(0, 2**20)))
    return HyenaOperator(draw(st.sampled_from([4, 8])), L_MAX, **settings, dtype=torch.float64)


def apart(got: Tensor, want: Tensor) -> float:
    return ((got - want).abs().max() / want.abs().max().clamp_min(1.0)).item()


@given(op=operators(), data=st.data())
def test_rows(op: HyenaOperator, data: st.DataObject) -> None:
    batch, length = data.draw(st.integers(1, 3)), data.draw(st.integers(1, L_MAX))
    keep = make_mask(data.draw(st.sampled_from(MASKS)), batch, length, data.draw(st.integers(0, 99)))
    op.train(data.draw(st.booleans()))
    u = rand(batch, length, op.d_model).requires_grad_()
    y, want = op(u, keep), expected(op, u, keep)
    assert apart(y, want) < CLOSE
    dy = rand(batch, length, op.d_model, seed=3)
    leaves = [u, *(p for p in op.parameters() if p.numel())]
    got, right = (torch.autograd.grad(out, leaves, dy, allow_unused=True) for out in (y, want))
    for g, w in zip(got, right, strict=True):
        assert (g is None) == (w is None) or not (g if g is not None else w).any()
        if g is not None and w is not None:
            assert apart(g, w) < CLOSE


@given(op=operators(), data=st.data())
def test_packed_rows(op: HyenaOperator, data: st.DataObject) -> None:
    sizes = data.draw(st.lists(st.integers(0, L_MAX), min_size=1, max_size=5).filter(any))
    u = rand(1, sum(sizes), op.d_model)
    y = op(u, cu_seqlens=offsets(sizes), max_seqlen=data.draw(st.sampled_from([None, max(sizes), L_MAX])))
    want = torch.cat([expected(op, part) for part in u.split(sizes, dim=1) if part.size(1)], dim=1)
    assert apart(y, want) < CLOSE


@given(op=operators(causal=True), data=st.data())
def test_steps(op: HyenaOperator, data: st.DataObject) -> None:
    batch, length = data.draw(st.integers(1, 3)), data.draw(st.integers(1, L_MAX))
    keep = make_mask(data.draw(st.sampled_from(MASKS)), batch, length, data.draw(st.integers(0, 99)))
    LongConv.block, before = data.draw(st.sampled_from([1, 2, 4, 8, 32])), LongConv.block
    try:
        op.eval()
        u, state, at, out = rand(batch, length, op.d_model), None, 0, []
        state = op.init_state(batch, data.draw(st.integers(length, L_MAX)))
        while at < length:
            n = data.draw(st.integers(1, length - at))
            if data.draw(st.booleans()):
                state = state.clone()
            mask = None if keep is None else keep[:, at : at + n]
            if n == 1:
                y, state = op.step(u[:, at], state, None if mask is None else mask[:, 0])
                out.append(y[:, None])
            else:
                y, state = op.prefill(u[:, at : at + n], state, mask)
                out.append(y)
            at += n
        assert apart(torch.cat(out, dim=1), expected(op, u, keep).detach()) < CLOSE
    finally:
        LongConv.block = before


@given(op=operators(), data=st.data())
def test_matrices(op: HyenaOperator, data: st.DataObject) -> None:
    length = data.draw(st.integers(1, 20))
    u = rand(1, length, op.d_model)
    with torch.no_grad():
        v = op.short(op.in_proj(u)).split(op.width, dim=2)[-1]
        y = torch.einsum("bcts,bsc->btc", op.to_matrix(u), v)
        y = torch.nn.functional.gelu(y) if op.activation is not None else y
        assert apart(op.out_proj(y), op(u)) < CLOSE
