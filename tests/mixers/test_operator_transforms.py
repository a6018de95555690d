"""The operator, its filter included, under ``torch.func`` and in forward mode; float64 against its definition."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import functional_call, grad, jacfwd, jacrev, jvp, vmap
from torch.utils import _pytree

from helpers.cases import make_mask, rand
from helpers.operators import D, build, expected
from hyena import HyenaOperator

CONFIGS = ["default", "order-1-paper", "order-3", "two-sided", "heads", "head-mixing", "blocks", "activation"]
LENGTH = 14
Loss = Callable[[dict[str, Tensor], Tensor], Tensor]


class Definition(nn.Module):
    """The operator's weights and filter, and what it must compute from them."""

    def __init__(self, op: HyenaOperator) -> None:
        super().__init__()
        self.op = op

    def forward(self, u: Tensor, mask: Tensor | None = None) -> Tensor:
        return expected(self.op, u, mask)


def functions(config: str) -> tuple[list[Callable[..., Tensor]], dict[str, Tensor]]:
    """(parameters, u) -> y, of the operator and of its definition; and the parameters."""
    m = build(config).double().eval()
    definition = Definition(m)
    parameters = {name: p.detach() for name, p in m.named_parameters() if p.numel() > 0}
    mask = make_mask("random", 2, LENGTH)

    def operator(p: dict[str, Tensor], u: Tensor) -> Tensor:
        return functional_call(m, p, (u, mask if u.size(0) == 2 else None))

    def want(p: dict[str, Tensor], u: Tensor) -> Tensor:
        named = {f"op.{name}": t for name, t in p.items()}
        return functional_call(definition, named, (u, mask if u.size(0) == 2 else None))

    return [operator, want], parameters


def same(got: object, want: object) -> None:
    for g, w in zip(_pytree.tree_leaves(got), _pytree.tree_leaves(want), strict=True):
        torch.testing.assert_close(g, w, rtol=1e-8, atol=1e-9 * max(1.0, w.abs().max().item()))


def tangents(like: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: rand(*t.shape, seed=i) / 8 for i, (name, t) in enumerate(like.items())}


@pytest.mark.parametrize("config", CONFIGS)
def test_derivatives(config: str) -> None:
    fns, p = functions(config)
    u, along = rand(2, LENGTH, D), (tangents(p), rand(2, LENGTH, D, seed=99))
    found = []
    for fn in fns:

        def loss(p: dict[str, Tensor], u: Tensor, fn: Callable[..., Tensor] = fn) -> Tensor:
            return fn(p, u).square().sum()

        found.append(
            [
                jvp(fn, (p, u), along),
                grad(loss, (0, 1))(p, u),
                jvp(grad(loss, (0, 1)), (p, u), along),
                jacfwd(lambda u, fn=fn: fn(p, u).sum((0, 1)))(u),
                jacrev(lambda u, fn=fn: fn(p, u).sum((0, 1)))(u),
            ]
        )
    same(*found)
    assert found[0][0][1].abs().max() > 0


@pytest.mark.parametrize("config", CONFIGS)
def test_gradients_of_each_sample(config: str) -> None:
    fns, p = functions(config)
    u, found = rand(3, LENGTH, D), []
    for fn in fns:

        def loss(p: dict[str, Tensor], sample: Tensor, fn: Callable[..., Tensor] = fn) -> Tensor:
            return fn(p, sample[None]).square().sum()

        each = [grad(loss)(p, sample) for sample in u]
        found.append({name: torch.stack([g[name] for g in each]) for name in p})
        if fn is fns[0]:
            same(vmap(grad(loss), (None, 0))(p, u), found[0])
    same(*found)


def test_forward_mode_without_torch_func() -> None:
    m, u, t = build("default").double(), rand(2, LENGTH, D), rand(2, LENGTH, D, seed=1)
    with forward_ad.dual_level():
        got = forward_ad.unpack_dual(m(forward_ad.make_dual(u, t))).tangent
    same(got, jvp(lambda u: expected(m, u), (u,), (t,))[1])


def test_ensembles() -> None:
    """Several models at once, by vmap over their parameters."""
    fns, p = functions("default")
    stacked = {name: torch.stack([t, 1.1 * t]) for name, t in p.items()}
    u = rand(2, LENGTH, D)
    want = torch.stack([fns[1]({name: t[i] for name, t in stacked.items()}, u) for i in range(2)])
    same(vmap(fns[0], (0, None))(stacked, u), want)
