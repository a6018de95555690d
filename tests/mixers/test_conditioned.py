"""Operators whose filters a condition changes: each row against the definition with its own taps."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import pytest
import torch
import torch._dynamo.testing
from torch import Tensor

from helpers.cases import offsets
from helpers.definitions import assert_close
from helpers.operators import expected
from hyena import HyenaOperator
from hyena.checkpoints.safari.blocks import SafariOperator
from hyena.filters import FiLMFilter

D, L_MAX, Q = 8, 40, 3
CONFIGS: dict[str, dict[str, Any]] = {
    "order-2": {},
    "order-3": {"order": 3},
    "paper": {"value_filter": True},
    "two-sided": {"causal": False},
    "groups": {"filter_groups": 2},
    "heads": {"num_heads": 2},
    "heads-order-3": {"num_heads": 4, "order": 3},
}
FILTER = partial(FiLMFilter, condition_dim=Q, emb_dim=5, width=8)


def build(name: str = "order-2", **options: Any) -> HyenaOperator:
    op = HyenaOperator(D, L_MAX, **{"filter": FILTER, "dtype": torch.float64, **CONFIGS[name], **options})
    torch.nn.init.normal_(op.conv.filter.film.weight, std=0.3)
    return op


def rows(batch: int, length: int) -> tuple[Tensor, Tensor]:
    return torch.randn(batch, length, D, dtype=torch.float64), torch.randn(batch, Q, dtype=torch.float64)


def alone(op: HyenaOperator, u: Tensor, condition: Tensor, mask: Tensor | None = None) -> Tensor:
    """Each row by explicit Toeplitz matrices, with the taps of its condition."""
    taps = op.conv.filter(u.size(1), condition)
    parts = [
        expected(op, u[b : b + 1], None if mask is None else mask[b : b + 1], taps=taps[b]) for b in range(u.size(0))
    ]
    return torch.cat(parts)


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("length", [1, 23])
def test_every_row_has_filters_of_its_own(name: str, length: int) -> None:
    op = build(name)
    u, condition = (t.requires_grad_() for t in rows(3, length))
    got, want = op(u, condition=condition), alone(op, u, condition)
    assert_close(got, want, "output")
    names, weights = zip(*op.named_parameters(), strict=True)
    probe = torch.randn_like(got)
    inputs = (u, condition, *weights)
    grads = [torch.autograd.grad((y * probe).sum(), inputs, materialize_grads=True) for y in (got, want)]
    for what, a, b in zip(("u", "condition", *names), *grads, strict=True):
        assert_close(a, b, what)
    assert grads[0][1].abs().max() > 1e-6 or length == 1


def test_a_condition_matters_and_none_is_none() -> None:
    op = build().eval()
    u, condition = rows(2, 30)
    with torch.no_grad():
        plain, other = op(u), op(u, condition=condition)
        assert_close(op(u, condition=torch.zeros_like(condition)), plain)
        assert (plain - other).abs().max() > 1e-3
        assert_close(op(u), plain)  # kept spectra are those without a condition


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", ["order-3", "two-sided"])
def test_padding_changes_nothing(name: str, side: str) -> None:
    op, kept = build(name), 15
    u, condition = rows(2, 24)
    at = torch.arange(24)
    keep = torch.stack([torch.ones(24, dtype=torch.bool), at < kept if side == "right" else at >= 24 - kept])
    part = slice(0, kept) if side == "right" else slice(24 - kept, 24)
    padded = u.masked_fill(~keep[..., None], torch.nan).requires_grad_()
    y = op(padded, keep, condition=condition)
    assert_close(y[1, part], op(u[1:, part], condition=condition[1:])[0])
    y[keep].square().sum().backward()
    assert not padded.grad[~keep].any()
    assert all(p.grad.isfinite().all() for p in op.parameters())


@pytest.mark.parametrize("name", ["order-2", "two-sided", "heads"])
@pytest.mark.parametrize("max_seqlen", [None, 20])
def test_packed_rows_have_a_condition_each(name: str, max_seqlen: int | None) -> None:
    op, sizes = build(name), [20, 1, 0, 13, 7]
    u, condition = torch.randn(1, sum(sizes), D, dtype=torch.float64), torch.randn(len(sizes), Q, dtype=torch.float64)
    mask = torch.rand(1, sum(sizes)) < 0.8
    for keep in (None, mask):
        y = op(u, keep, cu_seqlens=offsets(sizes), max_seqlen=max_seqlen, condition=condition)
        at = 0
        for i, size in enumerate(sizes):
            part = slice(at, at + size)
            if size:
                row_keep = None if keep is None else keep[:, part]
                assert_close(y[:, part], op(u[:, part], row_keep, condition=condition[i : i + 1]), f"row {i}")
            at += size
    flat = op(u[0], cu_seqlens=offsets(sizes), condition=condition)
    assert_close(flat[None], op(u, cu_seqlens=offsets(sizes), condition=condition))


@pytest.mark.parametrize("name", [n for n in CONFIGS if n != "two-sided"])
@pytest.mark.parametrize("sizes", [[1] * 33, [33], [7, 1, 1, 20, 4]], ids=str)
def test_steps_and_chunks_are_the_parallel_form(name: str, sizes: list[int]) -> None:
    op = build(name).eval()
    u, condition = rows(3, 33)
    for keep in (None, torch.arange(33) >= torch.tensor([[0], [9], [21]])):
        state, out, at = op.init_state(3, 35, condition=condition), [], 0
        for n in sizes:
            mask = None if keep is None else keep[:, at : at + n]
            if n == 1:
                y, state = op.step(u[:, at], state, None if mask is None else mask[:, 0])
                out.append(y[:, None])
            else:
                y, state = op.prefill(u[:, at : at + n], state, mask)
                out.append(y)
            at += n
        want = op(u, keep, condition=condition)
        kept = torch.ones(3, 33, dtype=torch.bool) if keep is None else keep
        assert_close(torch.cat(out, dim=1)[kept], want[kept])


def test_rows_take_their_filters_along() -> None:
    op = build().eval()
    u, condition = rows(2, 20)
    state = op.init_state(2, 20, condition)
    op.prefill(u[:, :11], state)
    assert tuple(state.size()) == (sum(t.numel() * 8 for t in state.rows().values()), op.width * 8)
    order = torch.tensor([1, 0, 1])
    turned, copied, saved = state.reorder(order), state.clone(), state.state_dict()
    want = op(u, condition=condition)[:, 11:]
    assert_close(op.prefill(u[order, 11:], turned)[0], want[order])
    again = op.init_state(2, 20, torch.zeros(2, Q))
    again.load_state_dict({k: t.clone() for k, t in saved.items()})
    for each in (state, copied, again):
        assert_close(op.prefill(u[:, 11:], each)[0], want)
    assert_close(
        op.to("cpu").prefill(u[:, :3], op.init_state(2, condition=condition).to("cpu"))[0],
        op(u[:, :3], condition=condition),
    )


@pytest.mark.parametrize("name", ["order-2", "order-3", "heads", "two-sided"])
def test_the_matrix_of_every_row(name: str) -> None:
    op = build(name)
    u, condition = rows(2, 11)
    whole = op.to_matrix(u, condition=condition)
    for b in range(2):
        assert_close(op.to_matrix(u[b : b + 1], condition=condition[b : b + 1])[0], whole[b])
    assert (op.to_matrix(u) - whole).abs().max() > 1e-4
    value = op.short(op.in_proj(u)).split(op.width, dim=2)[-1]
    mixed = torch.einsum("bcts,bsc->btc", whole, value)
    assert_close(op.out_proj(mixed), op(u, condition=condition))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_lower_precision(dtype: torch.dtype) -> None:
    op = build().to(dtype)
    u, condition = (t.to(dtype) for t in rows(2, 30))
    want = copy.deepcopy(op).double()(u.double(), condition=condition.double())
    y = op(u, condition=condition)
    assert y.dtype == dtype
    close = 1e-5 if dtype == torch.float32 else 0.05
    assert (y.double() - want).abs().max() <= close * want.abs().max()


def test_compiles_in_one_graph() -> None:
    op = build().eval()
    u, condition = rows(2, 19)
    torch._dynamo.reset()
    compiled = torch.compile(op, fullgraph=True, backend="aot_eager")
    assert_close(compiled(u, condition=condition), op(u, condition=condition))
    torch._dynamo.reset()


def test_a_compiled_step_is_traced_a_few_times_at_most() -> None:
    op = build().eval()
    u, condition = rows(2, 30)
    frames = torch._dynamo.testing.CompileCounter()
    torch._dynamo.reset()
    step = torch.compile(op.step, backend=frames, fullgraph=True)
    state, out = op.init_state(2, 30, condition), []
    with torch.no_grad():
        for t in range(30):
            y, state = step(u[:, t], state)
            out.append(y)
        assert_close(torch.stack(out, dim=1), op(u, condition=condition))
    assert frames.frame_count <= 3
    torch._dynamo.reset()


def test_released_blocks_share_their_rows_condition() -> None:
    op = SafariOperator(D, L_MAX, num_blocks=2, filter=FILTER, dtype=torch.float64)
    torch.nn.init.normal_(op.conv.filter.film.weight, std=0.3)
    u, condition = rows(2, 20)
    taps = op.conv.filter(10, condition)
    want = torch.cat([expected(op, u[b : b + 1], taps=taps[b]) for b in range(2)])
    assert_close(op(u, condition=condition), want)


def test_what_does_not_fit_is_refused_at_the_call() -> None:
    op, plain = build().eval(), HyenaOperator(D, L_MAX)
    u, condition = rows(2, 9)
    with pytest.raises(ValueError, match=r"\(2, 3\).*got torch.float64 of shape \(3, 3\)"):
        op(u, condition=torch.cat([condition, condition[:1]]))
    with pytest.raises(ValueError, match=r"\(2, 3\).*shape \(2, 4\)"):
        op(u, condition=torch.randn(2, 4))
    with pytest.raises(ValueError, match="HyenaFilter, which takes none"):
        plain(u.float(), condition=condition)
    with pytest.raises(ValueError, match="HyenaFilter, which takes none"):
        plain.init_state(2, condition=condition)
    with pytest.raises(ValueError, match="no long filter"):
        HyenaOperator(D, L_MAX, order=1)(u.float(), condition=condition)
    with pytest.raises(ValueError, match="pass it to init_state"):
        op(u, state=op.init_state(2), condition=condition)
    with pytest.raises(ValueError, match=r"\(3, 3\).*shape \(2, 3\)"):
        op.init_state(3, condition=condition)
    with pytest.raises(ValueError, match="causal=False needs the whole input at once"):
        build("two-sided").init_state(2, condition=condition)
    state = op.init_state(2, condition=condition)
    op.prefill(torch.zeros(2, 30, D, dtype=torch.float64), state)
    with pytest.raises(ValueError, match=r"30 positions and 11 more do not fit"):
        op.prefill(torch.zeros(2, 11, D, dtype=torch.float64), state)
    with pytest.raises(ValueError, match=r"\(5, 3\).*shape \(2, 3\)"):
        op(u[:1], cu_seqlens=offsets([1, 2, 3, 1, 2]), condition=condition)
