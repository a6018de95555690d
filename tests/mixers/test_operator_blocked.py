"""Operators whose mixing step is in channel blocks on a CPU: what that must not change."""

from __future__ import annotations

import copy
import importlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import functional_call, grad, jvp, vmap
from torch.utils.checkpoint import checkpoint

from helpers.cases import make_mask, offsets, rand
from hyena import HyenaOperator, ops
from hyena.filters import ExplicitFilter

projections = importlib.import_module("hyena.ops.project")  # ops.project is the function
D, LENGTH = 32, 300
CONFIGS: dict[str, dict[str, Any]] = {
    "default": {},
    "order-1-paper": {"order": 1, "value_filter": True},
    "order-3": {"order": 3},
    "two-sided": {"causal": False},
    "groups": {"filter_groups": 2, "short_taps": 5},
    "wide": {"inner_factor": 2, "bias": False},
    "activation": {"activation": partial(torch.softmax, dim=2), "short_taps": 1},
    "few-taps": {"filter": partial(ExplicitFilter, taps=5)},
    "dropout": {"dropout": 0.5},
}


@pytest.fixture(autouse=True)
def blocks(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], int]]:
    """As on a processor where the library's products are fast; counts the mixing steps that were in channel blocks."""
    if not ops.has_kernel("recurrence", torch.device("cpu")):
        pytest.skip("no compiled kernels")
    monkeypatch.setattr(projections.EXTENSION, "fast_rows", 256)
    with (
        mock.patch.object(ops, "recurrence", wraps=ops.recurrence) as first,
        mock.patch.object(ops, "direct_recurrence", wraps=ops.direct_recurrence) as second,
    ):
        yield lambda: sum(c.args[0].dim() == 4 for c in first.call_args_list + second.call_args_list)


def rows() -> AbstractContextManager[object]:
    """Mixing steps on (B, L, C)."""
    return mock.patch.object(projections, "is_channel_blocked_faster", return_value=False)


def build(config: str = "default", dtype: torch.dtype = torch.float64) -> HyenaOperator:
    return HyenaOperator(D, 512, **CONFIGS[config]).to(dtype)


def results(m: nn.Module, u: Tensor, *args: Any, call: Callable | None = None, **more: Any) -> dict[str, Tensor]:
    """The output, and the gradients of the input and of every parameter."""
    u = u.detach().requires_grad_()
    y = (m if call is None else call)(u, *args, **more)
    leaves = {"u": u} | {name: p for name, p in m.named_parameters() if p.numel() > 0}
    dy = rand(*y.shape, seed=7).to(y)
    return {"y": y} | dict(zip(leaves, torch.autograd.grad(y, list(leaves.values()), dy), strict=True))


def same(got: dict[str, Tensor], want: dict[str, Tensor], eps: float | None = None) -> None:
    """To 200 eps of the largest entry."""
    assert got.keys() == want.keys()
    for name, w in want.items():
        g, most = got[name], w.abs().max().item()
        assert g.dtype == w.dtype, name
        assert g.stride() == w.stride(), name
        wrong = (g - w).abs().max().item()
        assert wrong <= 200 * (eps or torch.finfo(w.dtype).eps) * most, (name, wrong, most)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("config", CONFIGS)
def test_outputs_and_gradients(config: str, dtype: torch.dtype, blocks: Callable[[], int]) -> None:
    m = build(config, dtype).train(config != "dropout")
    for batch, mask in ((1, "none"), (2, "random"), (3, "left")):
        u, keep = rand(batch, LENGTH, D).to(dtype), make_mask(mask, batch, LENGTH)
        before = blocks()
        got = results(m, u, keep)
        assert blocks() == before + 1
        with rows():
            same(got, results(m, u, keep))
        assert blocks() == before + 1


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("config", ["default", "few-taps"])
def test_packed_rows(config: str, dtype: torch.dtype, blocks: Callable[[], int]) -> None:
    m, at = build(config, dtype), offsets([170, 0, 1, 129])
    for u, mask in ((rand(1, LENGTH, D), make_mask("random", 1, LENGTH)), (rand(LENGTH, D), None)):
        got = results(m, u.to(dtype), mask, cu_seqlens=at)
        with rows():
            same(got, results(m, u.to(dtype), mask, cu_seqlens=at))
    assert blocks() == 2


@pytest.mark.parametrize("config", ["default", "few-taps"])
def test_padding_reaches_nothing(config: str, blocks: Callable[[], int]) -> None:
    m, mask = build(config), make_mask("random", 2, LENGTH)
    u = rand(2, LENGTH, D)
    dirty = torch.where(mask[..., None], u, torch.nan)
    for g, w in zip(results(m, dirty, mask).values(), results(m, u * mask[..., None], mask).values(), strict=True):
        assert torch.equal(g, w)
    assert blocks() == 2


def test_where_blocks_are_not_faster(blocks: Callable[[], int]) -> None:
    """Few positions, channels that fill no block, other dtypes, dropout, heads, and what is not the CPU."""
    faster = projections.is_channel_blocked_faster
    u = torch.zeros(1, 256, D)
    assert faster(u, 32)
    assert faster(u.expand(2, -1, -1)[:, :128], 32)
    for other, channels in ((u[:, :255], 32), (u, 24), (u.bfloat16(), 32), (u.to("meta"), 32)):
        assert not faster(other, channels)
    m = build("dropout").train()
    m(rand(1, LENGTH, D))
    HyenaOperator(D, 512, num_heads=2).double()(rand(1, LENGTH, D))
    HyenaOperator(24, 512).double()(rand(1, LENGTH, 24))
    build()(rand(1, 255, D))
    assert blocks() == 0
    with mock.patch.object(projections.EXTENSION, "fast_rows", 0):
        build()(rand(1, LENGTH, D))
    with torch.autocast("cpu", torch.bfloat16):
        assert not faster(u, 32)
    assert blocks() == 0
    build()(rand(2, 128, D))
    assert blocks() == 1


def test_autocast(blocks: Callable[[], int]) -> None:
    m, u = build(dtype=torch.float32), rand(1, LENGTH, D).float()
    with torch.autocast("cpu", torch.bfloat16):
        got = results(m, u)
        assert got["y"].dtype == torch.bfloat16
        with rows():
            same(got, results(m, u))
    assert blocks() == 0
    with torch.autocast("cpu", torch.bfloat16, enabled=False):
        m(u)
    assert blocks() == 1


class Adapted(nn.Module):
    """A low-rank adapter in a linear layer's place."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base = base
        self.down = nn.Parameter(rand(2, base.in_features, seed=11) / 8)
        self.up = nn.Parameter(rand(base.out_features, 2, seed=12))

    def forward(self, u: Tensor) -> Tensor:
        assert u.dim() == 3
        return self.base(u) + u @ self.down.T @ self.up.T


@pytest.mark.parametrize("name", ["in_proj", "out_proj"])
def test_adapters(name: str, blocks: Callable[[], int]) -> None:
    m, u = build(), rand(2, LENGTH, D)
    setattr(m, name, Adapted(getattr(m, name)).double())
    got = results(m, u)
    with rows():
        same(got, results(m, u))
    assert blocks() == (name == "out_proj")


@pytest.mark.parametrize("name", ["in_proj", "out_proj"])
def test_hooks(name: str, blocks: Callable[[], int]) -> None:
    """See (B, L, C), and what they give is what counts."""
    m, u, seen = build(), rand(2, LENGTH, D), []
    layer = getattr(m, name)
    layer.register_forward_hook(lambda module, inputs, y: seen.append((inputs[0].detach(), y.detach())) or 2 * y)
    layer.register_forward_pre_hook(lambda module, inputs: (inputs[0] + 1,))
    got = results(m, u)
    with rows():
        same(got, results(m, u))
    assert len(seen) == 2
    for g, w in zip(*seen, strict=True):
        torch.testing.assert_close(g, w, rtol=1e-11, atol=1e-11)
    assert blocks() == (name == "out_proj")


def test_gradient_hooks_and_frozen_parts(blocks: Callable[[], int]) -> None:
    """Of tensors in between, and where not everything wants a gradient."""
    m, u = build(), rand(2, LENGTH, D)
    for frozen in (["in_proj.weight"], ["in_proj.bias", "out_proj.bias"], ["out_proj.weight", "in_proj.weight"]):
        found = []
        for context in (nullcontext(), rows()):
            each = copy.deepcopy(m)
            for name in frozen:
                each.get_parameter(name).requires_grad_(False)
            with context:
                each(u).square().sum().backward()
            found.append({name: p.grad for name, p in each.named_parameters() if p.grad is not None})
            assert not set(frozen) & found[-1].keys()
        same(*found)
    assert blocks() == 3


def test_dtypes_that_do_not_fit_raise_as_ever() -> None:
    m, u = build(), rand(1, LENGTH, D).float()

    def message() -> str:
        with pytest.raises((RuntimeError, ValueError)) as found:
            m(u)
        return str(found.value)

    got = message()
    with rows():
        assert message() == got


def test_the_fallback(blocks: Callable[[], int]) -> None:
    m, u = build(), rand(2, LENGTH, D)
    want = results(m, u)
    with ops.fallback_only():
        got = results(m, u)
    assert blocks() == 1
    same(got, want)


def test_double_backward(blocks: Callable[[], int]) -> None:
    m, found = build(), []
    leaves = {"u": rand(2, 130, D).requires_grad_(), **{n: p for n, p in m.named_parameters() if p.numel() > 0}}
    for context in (nullcontext(), rows()):
        with context:
            y = m(leaves["u"])
            first = torch.autograd.grad(y.square().sum(), list(leaves.values()), create_graph=True)
            total = sum(g.square().sum() for g in first)
            found.append(dict(zip(leaves, torch.autograd.grad(total, list(leaves.values())), strict=True)))
    assert blocks() == 1
    same(*found)


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing(reentrant: bool, blocks: Callable[[], int]) -> None:
    m, u = build(), rand(2, LENGTH, D)
    got = results(m, u, call=partial(_checkpointed, m, reentrant)) if not reentrant else _accumulated(m, u)
    with rows():
        want = results(m, u)
    same(got, {name: want[name] for name in got})
    assert blocks() == 2


def _checkpointed(m: nn.Module, reentrant: bool, u: Tensor) -> Tensor:
    return checkpoint(m, u, use_reentrant=reentrant)


def _accumulated(m: nn.Module, u: Tensor) -> dict[str, Tensor]:
    """The other kind cannot be asked for single gradients."""
    u = u.detach().requires_grad_()
    y = _checkpointed(m, True, u)
    y.backward(rand(*y.shape, seed=7))
    return {"u": u.grad} | {name: p.grad for name, p in m.named_parameters() if p.numel() > 0}


def test_batched_gradients(blocks: Callable[[], int]) -> None:
    """``is_grads_batched`` vmaps the backward pass."""
    m, u, dy = build(), rand(1, LENGTH, D).requires_grad_(), rand(3, 1, LENGTH, D, seed=3)
    leaves = {"u": u, **{n: p for n, p in m.named_parameters() if p.numel() > 0}}
    y = m(u)
    each = [torch.autograd.grad(y, list(leaves.values()), one, retain_graph=True) for one in dy]
    got = torch.autograd.grad(y, list(leaves.values()), dy, is_grads_batched=True)
    assert blocks() == 1
    want = [torch.stack(parts) for parts in zip(*each, strict=True)]
    same(*(dict(zip(leaves, (t.contiguous() for t in g), strict=True)) for g in (got, want)))


def test_transforms() -> None:
    """``torch.func`` and forward mode; that blocks are used is seen from the inside."""
    m, u, found, dims = build(), rand(2, 256, D), [], set()
    p = {name: t.detach() for name, t in m.named_parameters() if t.numel() > 0}
    t = {name: rand(*each.shape, seed=i) / 8 for i, (name, each) in enumerate(p.items())}
    along = rand(2, 256, D, seed=99)

    def call(p: dict[str, Tensor], u: Tensor) -> Tensor:
        with _noting(dims):
            return functional_call(m, p, (u,))

    def loss(p: dict[str, Tensor], u: Tensor) -> Tensor:
        return call(p, u if u.dim() == 3 else u[None]).square().sum()

    for context in (nullcontext(), rows()):
        with context:
            each = {"y": (jvp(call, (p, u), (t, along)))[1]}
            with forward_ad.dual_level():
                each["forward mode"] = forward_ad.unpack_dual(call(p, forward_ad.make_dual(u, along))).tangent
            each |= {f"grad {n}": g for n, g in grad(loss)(p, u).items()}
            each |= {f"each {n}": g for n, g in vmap(grad(loss), (None, 0))(p, u).items()}
            each |= {f"jvp {n}": g for n, g in jvp(grad(loss), (p, u), (t, along))[1].items()}
            each["models"] = vmap(call, (0, None))({n: torch.stack([v, 1.1 * v]) for n, v in p.items()}, u)
            found.append({n: v.contiguous() for n, v in each.items()})
        if isinstance(context, nullcontext):
            assert dims == {4}
            dims.clear()
    assert dims == {3}
    same(*found)


@contextmanager
def _noting(dims: set[int]) -> Iterator[None]:
    """Dimensions of what mixing steps take."""
    real = ops.recurrence

    def note(z: Tensor, *rest: Any) -> Tensor:
        dims.add(z.dim())
        return real(z, *rest)

    with mock.patch.object(ops, "recurrence", note):
        yield


@pytest.fixture
def no_spies(blocks: Callable[[], int]) -> Iterator[None]:
    """Without what a trace cannot look into, and without graphs of other tests."""
    first, second = ops.recurrence._mock_wraps, ops.direct_recurrence._mock_wraps
    with mock.patch.multiple(ops, recurrence=first, direct_recurrence=second):
        torch._dynamo.reset()
        yield
        torch._dynamo.reset()


def _names(graph: torch.fx.Graph) -> list[str]:
    return [str(node.target) for node in graph.nodes if node.op == "call_function"]


@pytest.mark.parametrize("config", ["default", "few-taps"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_compiled(config: str, dtype: torch.dtype, no_spies: None) -> None:
    """One graph for all lengths, which has blocks, however few positions there are."""
    m, graphs = build(config, dtype), []

    def backend(module: torch.fx.GraphModule, given: list[Tensor]) -> Any:
        graphs.append(_names(module.graph))
        return torch._dynamo.lookup_backend("aot_eager")(module, given)

    compiled = torch.compile(m, fullgraph=True, dynamic=True, backend=backend)
    for i, length in enumerate((LENGTH, 40, 120, 333)):
        u, mask = rand(2, length, D).to(dtype), make_mask("random", 2, length)
        with torch._dynamo.config.patch(error_on_recompile=i > 0):
            got = results(m, u, mask, call=compiled)
        with rows():
            want = results(m, u, mask)
        same(got, want, eps=10 * torch.finfo(dtype).eps)
    for names in graphs:
        assert sum("project_channel_blocked" in name for name in names) == 1, names
        assert sum("project_from_channel_blocked" in name for name in names) == 1, names
    assert graphs


def test_compiled_by_inductor(no_spies: None) -> None:
    m, u = build(dtype=torch.float32), rand(2, LENGTH, D).float()
    got = results(m, u, call=torch.compile(m, fullgraph=True, dynamic=True))
    with rows():
        same(got, results(m, u), eps=1e-6)


@pytest.mark.parametrize("strict", [False, True])
def test_exported(strict: bool, no_spies: None) -> None:
    """The graph is the same whatever machine exported it."""
    m, u = build(dtype=torch.float32).eval(), rand(2, LENGTH, D).float()
    shapes = {"u": {1: torch.export.Dim("length", min=3, max=512)}}
    program = torch.export.export(m, (u,), dynamic_shapes=shapes, strict=strict)
    names = _names(program.graph)
    assert any("hyena." in name for name in names)
    assert not any("channel_blocked" in name for name in names)
    torch.testing.assert_close(program.module()(u), m(u), rtol=1e-4, atol=1e-5)
