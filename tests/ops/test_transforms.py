"""Ops under ``torch.func`` and in forward mode: every derivative against autograd through the definitions, float64."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vjp, vmap
from torch.utils import _pytree

from helpers import oracle
from helpers.cases import Tier, make_mask, offsets, rand
from hyena import functional, ops
from hyena.ops._layout import from_blocks, to_blocks

Function = Callable[..., Tensor]
ROWS = [(0, 4), (4, 9)]
LENGTH, C = 9, 4


def _gates(**shapes: tuple[int, ...]) -> tuple[Tensor, ...]:
    return tuple(rand(*shape, seed=i) / 2 for i, shape in enumerate(shapes.values()))


def _spectra(h: Tensor, causal: bool = True) -> Tensor:
    return ops.filter_spectrum(h, ops.transform_length(LENGTH), causal)


def cases(device: str) -> dict[str, tuple[Function, Function, tuple[Tensor, ...]]]:
    """(function, definition, arguments) of every op that has a derivative."""
    row, mask = (2, LENGTH, C), make_mask("random", 2, LENGTH)
    on_device = mask.to(device)
    packed, at = (1, LENGTH, C), offsets([4, 5]).to(device)
    conv = _gates(v=row, h=(5, 2), d=(C,), pre=row, post=row)
    return {
        "short_conv": (
            lambda z, w, b: ops.short_conv(z, w, b, on_device),
            lambda z, w, b: oracle.short_conv(z, w, b, mask),
            _gates(z=row, w=(C, 3), b=(C,)),
        ),
        "short_conv, packed": (
            lambda z, w, b: ops.short_conv(z, w, b, None, at),
            lambda z, w, b: oracle.short_conv(z, w, b, rows=ROWS),
            _gates(z=packed, w=(C, 3), b=(C,)),
        ),
        "direct_conv": (ops.direct_conv, oracle.gated_conv, conv),
        "gated_conv": (
            lambda v, h, *rest: ops.gated_conv(v, _spectra(h[None])[0], *rest),
            oracle.gated_conv,
            conv,
        ),
        "gated_conv, two-sided": (
            lambda v, h, pre: ops.gated_conv(v, _spectra(h[None], False)[0], None, pre),
            lambda v, h, pre: oracle.gated_conv(v, h, None, pre, causal=False),
            _gates(v=row, h=(5, C), pre=row),
        ),
        "gated_conv, packed": (
            lambda v, h, d: ops.gated_conv(v, _spectra(h[None])[0], d, cu_seqlens=at),
            lambda v, h, d: oracle.gated_conv(v, h, d, rows=ROWS),
            _gates(v=packed, h=(5, C), d=(C,)),
        ),
        "recurrence": (
            lambda z, w, b, h, d, zb: ops.recurrence(z, w, b, _spectra(h), d, on_device, None, zb),
            lambda z, w, b, h, d, zb: oracle.recurrence_of_z(z + zb, w, b, h, d, mask, order=3),
            _gates(z=(2, LENGTH, 4 * C), w=(4 * C, 3), b=(4 * C,), h=(2, 5, C), d=(2, C), zb=(4 * C,)),
        ),
        "project": (
            lambda u, w, b: torch.ops.hyena.project(u, w, b),
            lambda u, w, b: u @ w.T + b,
            _gates(u=row, w=(3, C), b=(3,)),
        ),
        "project_channel_major": (
            lambda u, w, b: torch.ops.hyena.project_channel_major(u, w, b),
            lambda u, w, b: u @ w.T + b,
            _gates(u=row, w=(3, C), b=(3,)),
        ),
        "project_channel_blocked": (
            lambda u, w, b: from_blocks(torch.ops.hyena.project_channel_blocked(u, w, b)),
            lambda u, w, b: u @ w.T + b,
            _gates(u=(2, 2, C), w=(16, C), b=(16,)),
        ),
        "project_from_channel_blocked": (
            lambda u, w, b: torch.ops.hyena.project_from_channel_blocked(to_blocks(u), w, b),
            lambda u, w, b: u @ w.T + b,
            _gates(u=(2, 2, 16), w=(3, 16), b=(3,)),
        ),
        "recurrence, blocked": (
            lambda z, w, b, h, d, zb: from_blocks(ops.recurrence(to_blocks(z), w, b, _spectra(h), d, None, None, zb)),
            lambda z, w, b, h, d, zb: oracle.recurrence_of_z(z + zb, w, b, h, d, order=2),
            _gates(z=(2, LENGTH, 48), w=(48, 3), b=(48,), h=(1, 5, C), d=(1, 16), zb=(48,)),
        ),
        "direct_recurrence, blocked": (
            lambda z, w, b, h, d, zb: from_blocks(ops.direct_recurrence(to_blocks(z), w, b, h, d, on_device, None, zb)),
            lambda z, w, b, h, d, zb: oracle.recurrence_of_z(z + zb, w, b, h[None], d[None], mask, order=2),
            _gates(z=(2, LENGTH, 48), w=(48, 3), b=(48,), h=(5, C), d=(16,), zb=(48,)),
        ),
        "implicit_filter": (
            lambda f, t, w, b, freq, o, e: ops.implicit_filter(f, t, [(w, b)], freq, o, e, 0.5, 2),
            _taps,
            _gates(features=(7, 3), time=(7,), w=(6, 3), b=(6,), freq=(6,), out=(4, 6), deltas=(4,)),
        ),
    }


def _taps(f: Tensor, t: Tensor, w: Tensor, b: Tensor, freq: Tensor, o: Tensor, e: Tensor) -> Tensor:
    h = (torch.sin(freq * (f @ w.T + b)) @ o.T) * (torch.exp(-t[:, None] * e.abs()) + 0.5)
    return h.view(7, 2, 2).transpose(0, 1)


def _square(fn: Function) -> Function:
    return lambda *args: fn(*args).square().sum()


def _all(args: tuple[Tensor, ...]) -> tuple[int, ...]:
    return tuple(range(len(args)))


def _tangents(args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(rand(*a.shape, seed=50 + i).to(a.device) for i, a in enumerate(args))


def _jvp(fn: Function, args: tuple[Tensor, ...]) -> object:
    return jvp(fn, args, _tangents(args))


def _forward_mode(fn: Function, args: tuple[Tensor, ...]) -> object:
    """Without torch.func, with some arguments that have no tangent."""
    found = []
    for some in (args, args[:1], args[1:]):
        given = {id(a) for a in some}
        with forward_ad.dual_level():
            duals = [
                forward_ad.make_dual(a, t) if id(a) in given else a for a, t in zip(args, _tangents(args), strict=True)
            ]
            found.append(forward_ad.unpack_dual(fn(*duals)).tangent)
    return found


def _grad(fn: Function, args: tuple[Tensor, ...]) -> object:
    return grad(_square(fn), _all(args))(*args)


def _forward_over_reverse(fn: Function, args: tuple[Tensor, ...]) -> object:
    return jvp(grad(_square(fn), _all(args)), args, _tangents(args))


def _forward_over_reverse_alone(fn: Function, args: tuple[Tensor, ...]) -> object:
    """Of each argument where the output itself is summed up: some gradients then do not move at all."""
    found = []
    for i, (a, t) in enumerate(zip(args, _tangents(args), strict=True)):

        def of_one(x: Tensor, i: int = i) -> Tensor:
            return fn(*args[:i], x, *args[i + 1 :]).sum() + x.pow(3).sum()

        found.append(jvp(grad(of_one), (a,), (t,)))
    return found


def _reverse_over_reverse(fn: Function, args: tuple[Tensor, ...]) -> object:
    return vjp(grad(_square(fn), _all(args)), *args)[1](_tangents(args))


def _reverse_over_forward(fn: Function, args: tuple[Tensor, ...]) -> object:
    return grad(lambda *a: jvp(fn, a, _tangents(args))[1].square().sum(), _all(args))(*args)


def _third(fn: Function, args: tuple[Tensor, ...]) -> object:
    """By plain autograd."""
    leaves = [a.detach().requires_grad_() for a in args]
    found = [fn(*leaves)]
    for _ in range(3):
        total = sum(f.pow(3).sum() for f in found if f is not None)
        found = torch.autograd.grad(total, leaves, create_graph=True, allow_unused=True)
    return [torch.zeros_like(leaf) if f is None else f for f, leaf in zip(found, leaves, strict=True)]


TRANSFORMS = [
    _jvp,
    _forward_mode,
    _grad,
    _forward_over_reverse,
    _forward_over_reverse_alone,
    _reverse_over_reverse,
    _reverse_over_forward,
    _third,
]


def _same(got: object, want: object) -> None:
    pairs = list(zip(_pytree.tree_leaves(got), _pytree.tree_leaves(want), strict=True))
    for g, w in pairs:
        torch.testing.assert_close(g.cpu(), w, rtol=1e-9, atol=1e-10 * max(1.0, w.abs().max().item()))
    assert any(w.abs().max() > 0 for _, w in pairs)


@pytest.mark.parametrize("name", cases("cpu"))
@pytest.mark.parametrize("transform", TRANSFORMS, ids=lambda t: t.__name__.strip("_"))
def test_derivatives(tier: Tier, transform: Callable[..., object], name: str) -> None:
    fn, definition, args = cases(tier.device)[name]
    with tier():
        got = transform(fn, tuple(a.to(tier.device) for a in args))
    _same(got, transform(definition, args))


@pytest.mark.parametrize("name", cases("cpu"))
def test_vmap(tier: Tier, name: str) -> None:
    """Over every argument, over the first and over the others; of the function, and of its gradient."""
    fn, definition, args = cases(tier.device)[name]
    some = [_all(args), (0,), _all(args)[1:]]
    for mapped in some:
        batched = tuple(torch.stack([a, 2 * a, -a]) if i in mapped else a for i, a in enumerate(args))
        dims = tuple(0 if i in mapped else None for i in _all(args))
        each = [tuple(a[k] if i in mapped else a for i, a in enumerate(batched)) for k in range(3)]
        for derive in (lambda f: f, lambda f: grad(_square(f), _all(args))):
            with tier():
                got = vmap(derive(fn), dims)(*(a.to(tier.device) for a in batched))
            want = [_pytree.tree_leaves(derive(definition)(*one)) for one in each]
            _same(got, [torch.stack(parts) for parts in zip(*want, strict=True)])


def test_vmap_over_another_dimension(tier: Tier) -> None:
    z, weight = rand(2, LENGTH, 3, C), rand(C, 3, seed=1)
    with tier():
        got = vmap(ops.short_conv, (2, None), 1)(z.to(tier.device), weight.to(tier.device))
    _same(got, torch.stack([oracle.short_conv(z[:, :, i], weight) for i in range(3)], 1))


def test_jacobians_and_hessian(tier: Tier) -> None:
    """As users ask for them."""
    v, h, d = rand(1, 3, 2), rand(3, 2, seed=1), rand(2, seed=2)
    on = tuple(a.to(tier.device) for a in (v, h, d))
    for make in (jacfwd, jacrev):
        with tier():
            got = make(lambda *a: ops.direct_conv(*a), (0, 1, 2))(*on)
        _same(got, make(oracle.gated_conv, (0, 1, 2))(v, h, d))
    with tier():
        got = hessian(_square(ops.direct_conv), (0, 1, 2))(*on)
    _same(got, hessian(_square(oracle.gated_conv), (0, 1, 2))(v, h, d))


def test_batched_gradients(tier: Tier) -> None:
    """``is_grads_batched``, which vmaps the backward pass of an op that ran without a transform."""
    v, h, d = rand(1, 5, 2), rand(5, 2, seed=1), rand(2, seed=2)
    grads = rand(4, 1, 5, 2, seed=3)
    found = []
    for fn, device in ((ops.direct_conv, tier.device), (oracle.gated_conv, "cpu")):
        leaves = [a.to(device).requires_grad_() for a in (v, h, d)]
        with tier():
            found.append(torch.autograd.grad(fn(*leaves), leaves, grads.to(device), is_grads_batched=True))
    _same(*found)


class Block(nn.Module):
    """A short and a long convolution, as users build one."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(rand(C, 3))
        self.taps = nn.Parameter(rand(40, C, seed=1) / 8)

    def forward(self, u: Tensor) -> Tensor:
        return functional.fft_conv(functional.short_conv(u, self.weight), self.taps)


def test_gradients_of_each_sample() -> None:
    """As Opacus and ``torch.func`` tutorials take them."""
    block, u = Block(), rand(3, 50, C)
    parameters = dict(block.named_parameters())

    def loss(parameters: dict[str, Tensor], sample: Tensor) -> Tensor:
        return functional_call(block, parameters, (sample[None],)).square().sum()

    got = vmap(grad(loss), (None, 0))(parameters, u)
    for i in range(3):
        want = torch.autograd.grad(block(u[i : i + 1]).square().sum(), list(parameters.values()))
        _same([got[name][i] for name in parameters], list(want))


def test_what_torch_gets_wrong_raises() -> None:
    """Forward twice over reverse loses terms in ``torch.autograd.Function``; an add in place has no derivative."""
    z, weight = rand(1, 4, 1), rand(1, 2, seed=1)

    def total(z: Tensor) -> Tensor:
        return ops.short_conv(z, weight).pow(4).sum()

    with pytest.raises(RuntimeError, match=r"hyena::short_conv has no derivative that goes forward twice.*jacrev"):
        jacfwd(jacfwd(grad(total)))(z)
    _same(jacrev(jacfwd(grad(total)))(z), jacrev(jacfwd(grad(lambda z: oracle.short_conv(z, weight).pow(4).sum())))(z))
    spectrum = _spectra(rand(1, 3, 1))[0]
    y = rand(1, 4, 1).requires_grad_()
    with pytest.raises(RuntimeError, match=r"add_conv_ has no gradient"):
        torch.ops.hyena.add_conv_(y, z, spectrum)
    with pytest.raises(RuntimeError, match="functionalize"):
        torch.func.functionalize(partial(ops.short_conv, weight=weight))(z)


@pytest.mark.parametrize("per_sample", [False, True])
def test_compiled(per_sample: bool) -> None:
    weight, h = rand(C, 3), rand(5, C, seed=1)

    def loss(z: Tensor) -> Tensor:
        return functional.gated_conv(functional.short_conv(z, weight), h).square().sum()

    fn = vmap(grad(loss)) if per_sample else grad(loss)
    z = rand(2, 1, LENGTH, C) if per_sample else rand(2, LENGTH, C)
    torch._dynamo.reset()
    torch.testing.assert_close(torch.compile(fn, fullgraph=True, backend="aot_eager")(z), fn(z))
    torch._dynamo.reset()
