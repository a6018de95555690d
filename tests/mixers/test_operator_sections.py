"""Operators whose filter is much shorter than their rows: convolved in sections, they give what the definition does."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from helpers import oracle
from hyena import HyenaOperator, ops
from hyena.filters import ExplicitFilter

D, TAPS, L = 16, 90, 700
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Few channels are in sections where threads are few."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def operator(**options: Any) -> HyenaOperator:
    torch.manual_seed(0)
    return HyenaOperator(D, L, filter=partial(ExplicitFilter, taps=TAPS), dtype=torch.float64, **options)


def rows(*shape: int) -> Tensor:
    return torch.randn(*shape, D, dtype=torch.float64)


@pytest.mark.parametrize(
    ("options", "length", "sectioned"),
    [
        ({}, L, True),
        ({"order": 3}, L, True),
        ({"order": 1, "value_filter": True}, L, True),
        ({"filter_groups": 2}, L, True),
        ({"causal": False}, L, False),
        ({}, 400, False),
    ],
)
def test_which_rows_are_in_sections(
    options: dict[str, Any], length: int, sectioned: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    op, u, mask = operator(**options), rows(2, length), torch.rand(2, length) < 0.7
    calls: list[bool] = []
    own = ops.recurrence
    monkeypatch.setattr(ops, "recurrence", lambda *a: calls.append(a[-1]) or own(*a))
    y = op(u, mask)
    assert calls == ([] if op._few_taps(length) is not None else [sectioned and ops.has_kernel("recurrence", CPU)])
    z, h = op.in_proj(u), op.conv.matrix_taps(length)
    want = oracle.recurrence_of_z(
        z, op.short.weight, op.short.bias, h, op.conv.bias, mask, order=op.order, causal=op.causal
    )
    torch.testing.assert_close(y, op.out_proj(want), rtol=0, atol=1e-11)


@pytest.mark.parametrize("training", [False, True], ids=["eval", "training"])
@pytest.mark.parametrize("options", [{}, {"num_heads": 4}, {"order": 3, "dropout": 0.0}])
def test_gradients(options: dict[str, Any], training: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of every weight and of the input, beside those of whole rows; spectra that eval mode keeps too."""
    op, u = operator(**options).train(training), rows(2, L).requires_grad_()
    leaves = [u, *op.parameters()]

    def gradients() -> tuple[Tensor, ...]:
        return torch.autograd.grad(op(u).square().sum(), leaves)

    got, again = gradients(), gradients()
    assert (op.conv.section(L) is not None) == ops.has_kernel("recurrence", CPU)
    monkeypatch.setattr(ops, "section_length", lambda *a: None)
    monkeypatch.setattr(ops, "is_direct", lambda *a: False)
    for g, twice, want in zip(got, again, gradients(), strict=True):
        assert torch.equal(g, twice)
        torch.testing.assert_close(g, want, rtol=1e-9, atol=1e-9)


def test_packed_rows() -> None:
    """Each as it is alone, whatever rows are beside it."""
    op = operator().eval()
    sizes = [600, 3, 0, 97]
    u, at = rows(1, sum(sizes)), torch.tensor([0, *torch.tensor(sizes).cumsum(0)])
    with torch.no_grad():
        y = op(u, cu_seqlens=at, max_seqlen=600)
        alone = [op(part) for part in u.split([n for n in sizes if n], dim=1)]
    torch.testing.assert_close(y, torch.cat(alone, dim=1), rtol=1e-10, atol=1e-10)


def test_steps_go_on_from_a_prefix_in_sections() -> None:
    op, u = operator().eval(), rows(2, L)
    y, state = op(u).detach(), op.init_state(2)
    first, state = op.prefill(u[:, : L - 1], state)
    last, _ = op.step(u[:, L - 1], state)
    torch.testing.assert_close(torch.cat([first, last[:, None]], dim=1), y, rtol=1e-9, atol=1e-9)


def test_a_trace_takes_whole_rows() -> None:
    op, u = operator().eval(), rows(1, L)
    with torch.no_grad():
        y = torch.compile(op, fullgraph=True, backend="aot_eager")(u)
        torch.testing.assert_close(y, op(u), rtol=1e-9, atol=1e-9)
