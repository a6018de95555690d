"""Mixers over grids whose filters a condition changes: each row against the same mixer with that row's taps."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from helpers.cases import offsets
from helpers.definitions import assert_close
from hyena.filters import FiLMFilterND
from hyena.mixers import HyenaND, HyenaPatches

D, Q = 8, 3
FILTER = partial(FiLMFilterND, condition_dim=Q, emb_dim=5, width=8)
CONFIGS: dict[str, tuple[tuple[int, ...], dict[str, Any]]] = {
    "1-D": ((7,), {}),
    "2-D": ((4, 5), {"order": 3}),
    "3-D": ((2, 3, 2), {"value_filter": True}),
    "boundaries": ((4, 5), {"boundary": ("circular", "reflect")}),
    "heads": ((3, 4), {"num_heads": 2}),
    "groups": ((3, 4), {"filter_groups": 2}),
}


class Taps(nn.Module):
    """A filter over grids that was made before."""

    def __init__(self, taps: Tensor) -> None:
        super().__init__()
        self.taps = taps

    def forward(self, size: Any) -> Tensor:
        return self.taps


def alone(op: Any, row: int, taps: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """The row with the taps of its condition as the filters of the same mixer."""
    kept = op.conv.filter
    op.conv.filter = Taps(taps[row])
    try:
        return op(*(None if a is None else a[row : row + 1] for a in args), **kwargs)
    finally:
        op.conv.filter = kept


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("masked", [False, True])
def test_every_row_has_filters_of_its_own(name: str, masked: bool) -> None:
    size, settings = CONFIGS[name]
    op = HyenaND(D, size, filter=FILTER, dtype=torch.float64, **settings)
    nn.init.normal_(op.conv.filter.film.weight, std=0.3)
    u = torch.randn(2, *size, D, dtype=torch.float64, requires_grad=True)
    condition = torch.randn(2, Q, dtype=torch.float64, requires_grad=True)
    mask = torch.rand(2, *size) < 0.7 if masked else None
    got = op(u, mask, condition=condition)
    taps = op.conv.filter(size, condition)
    want = torch.cat([alone(op, b, taps, u, mask) for b in range(2)])
    assert_close(got, want, "output")
    names, weights = zip(*op.named_parameters(), strict=True)
    probe = torch.randn_like(got)
    inputs = (u, condition, *weights)
    grads = [torch.autograd.grad((y * probe).sum(), inputs, materialize_grads=True) for y in (got, want)]
    for what, a, b in zip(("u", "condition", *names), *grads, strict=True):
        assert_close(a, b, what)
    assert (got - op(u, mask)).abs().max() > 1e-4
    assert_close(op(u, mask, condition=torch.zeros_like(condition)), op(u, mask))


@pytest.mark.parametrize("order", [2, 3])
def test_patches_and_tokens(order: int) -> None:
    op = HyenaPatches(D, 13, grid=(3, 4), order=order, filter=FILTER, dtype=torch.float64).eval()
    nn.init.normal_(op.conv.filter.film.weight, std=0.3)
    u, condition = torch.randn(3, 13, D, dtype=torch.float64), torch.randn(3, Q, dtype=torch.float64)
    taps = op.conv.filter((3, 4), condition)
    y = op(u, condition=condition)
    assert_close(y, torch.cat([alone(op, b, taps, u) for b in range(3)]))
    assert (y - op(u)).abs().max() > 1e-4
    small = op(u[:, :7], grid=(2, 3), condition=condition)
    assert_close(small[1:2], op(u[1:2, :7], grid=(2, 3), condition=condition[1:2]))
    packed = op(u.flatten(0, 1)[None, :22], cu_seqlens=offsets([13, 9]), condition=condition[:2])
    assert_close(packed[:, :13], y[:1])
    assert_close(packed[:, 13:], op(u[1:2, :9], condition=condition[1:2]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_lower_precision(dtype: torch.dtype) -> None:
    op = HyenaND(D, (4, 5), filter=FILTER, dtype=torch.float64)
    nn.init.normal_(op.conv.filter.film.weight, std=0.3)
    op = op.to(dtype)
    u, condition = torch.randn(2, 4, 5, D).to(dtype), torch.randn(2, Q).to(dtype)
    y, want = op(u, condition=condition), copy.deepcopy(op).double()(u.double(), condition=condition.double())
    assert y.dtype == dtype
    assert (y.double() - want).abs().max() <= (1e-5 if dtype == torch.float32 else 0.05) * want.abs().max()


def test_compiles_in_one_graph() -> None:
    op = HyenaND(D, (4, 5), filter=FILTER, dtype=torch.float64).eval()
    nn.init.normal_(op.conv.filter.film.weight, std=0.3)
    u, condition = torch.randn(2, 4, 5, D, dtype=torch.float64), torch.randn(2, Q, dtype=torch.float64)
    torch._dynamo.reset()
    compiled = torch.compile(op, fullgraph=True, backend="aot_eager")
    assert_close(compiled(u, condition=condition), op(u, condition=condition))
    torch._dynamo.reset()


def test_what_does_not_fit_is_refused_at_the_call() -> None:
    u, condition = torch.randn(2, 4, 5, D), torch.randn(2, Q)
    with pytest.raises(ValueError, match="HyenaFilterND, which takes none"):
        HyenaND(D, (4, 5))(u, condition=condition)
    with pytest.raises(ValueError, match="no long filter"):
        HyenaND(D, (4, 5), order=1)(u, condition=condition)
    op = HyenaND(D, (4, 5), filter=FILTER)
    with pytest.raises(ValueError, match=r"\(2, 3\).*got torch.float32 of shape \(3, 3\)"):
        op(u, condition=torch.randn(3, Q))
    patches = HyenaPatches(D, 21, grid=(4, 5), filter=FILTER)
    with pytest.raises(ValueError, match=r"\(2, 3\).*got torch.float32 of shape \(2, 4\)"):
        patches(torch.randn(2, 21, D), condition=torch.randn(2, 4))
    with pytest.raises(ValueError, match="no long filter"):
        HyenaPatches(D, 21, grid=(4, 5), order=1)(torch.randn(2, 21, D), condition=condition)
