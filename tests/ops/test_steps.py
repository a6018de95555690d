"""``hyena::short_step_``, ``modal_step_``, ``window_step_``, the gated ones: one position, and what is remembered."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from helpers.cases import LAYOUTS, Tier, laid_out, rand
from hyena import ops
from hyena.ops._library import OP_NAMES

WIDE = [torch.float64, torch.float32]
TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-5}
Step = tuple[Tensor, ...]


def close(got: Tensor, want: Tensor, dtype: torch.dtype) -> None:
    """Within rounding of the largest entry."""
    want = want.to(got.device)
    scale = max(want.abs().max().item(), 1.0) if want.numel() else 1.0
    assert got.shape == want.shape
    assert (got.to(want.dtype) - want).abs().max().item() <= TOLERANCE[dtype] * scale if want.numel() else True


def short(x: Tensor, weight: Tensor, bias: Tensor | None, memory: Tensor) -> Step:
    """Output and memory, a channel and a tap at a time."""
    rows = torch.cat([memory, x], dim=1)
    y = torch.zeros_like(x)
    for tap in range(weight.size(1)):
        y[:, 0] += weight[:, tap] * rows[:, tap]
    return y if bias is None else y + bias, rows[:, 1:]


def modal(
    x: Tensor, pre: Tensor | None, post: Tensor | None, pole: Tensor, residue: Tensor, first: Tensor, s: Tensor
) -> Step:
    """Output and states, a mode at a time."""
    v = x[:, 0] if pre is None else pre[:, 0] * x[:, 0]
    y, states = first * v, torch.empty_like(s)
    for k in range(pole.size(1)):
        term = residue[:, k] * s[..., k]
        y = y + (term.real if term.is_complex() else term)
        states[..., k] = pole[:, k] * s[..., k] + v
    return (y if post is None else post[:, 0] * y)[:, None], states


def window(x: Tensor, pre: Tensor | None, post: Tensor | None, h: Tensor, memory: Tensor) -> Step:
    """Output and window, a lag at a time."""
    rows = torch.cat([memory, x if pre is None else pre * x], dim=1)
    y = torch.zeros_like(x)
    for lag in range(h.size(0)):
        y[:, 0] += h[lag] * rows[:, rows.size(1) - 1 - lag]
    return y if post is None else post * y, rows[:, 1:]


def gated(
    long: Callable[..., Step], z: Tensor, weight: Tensor, bias: Tensor | None, last: Tensor, *own: Tensor
) -> Step:
    """Output, the short convolution's memory and the long one's."""
    c = z.size(2) // 3
    convolved, last = short(z, weight, bias, last)
    y, memory = long(convolved[..., 2 * c :], convolved[..., c : 2 * c], convolved[..., :c], *own)
    return y, last, memory


def given_to(
    op: str, batch: int, channels: int, size: int, taps: int, optional: bool, imaginary: bool
) -> dict[str, Any]:
    """Arguments in float64: ``size`` modes, or taps of a window."""
    wide = 3 * channels if op.startswith("gated") else channels
    found: dict[str, Any] = {"weight": rand(wide, taps, seed=1), "bias": rand(wide, seed=2) if optional else None}
    if op.startswith("gated"):
        found = {"z": rand(batch, 1, wide, seed=3), **found, "last": rand(batch, taps - 1, wide, seed=4)}
    else:
        found = {"x": rand(batch, 1, wide, seed=3)} | (found if op == "short_step_" else {})
    if op in ("modal_step_", "window_step_"):
        found |= {n: rand(batch, 1, channels, seed=5 + i) if optional else None for i, n in enumerate(("pre", "post"))}
    if "modal" in op:

        def maybe_complex(t: Tensor, seed: int) -> Tensor:
            return torch.complex(t, rand(*t.shape, seed=seed)) if imaginary else t

        found |= {n: maybe_complex(rand(channels, size, seed=7 + i), 9 + i) for i, n in enumerate(("pole", "residue"))}
        return found | {
            "first": rand(channels, seed=11),
            "memory": maybe_complex(rand(batch, channels, size, seed=12), 13),
        }
    if "window" in op:
        return found | {"h": rand(size, channels, seed=14), "memory": rand(batch, size - 1, channels, seed=15)}
    return found | {"memory": rand(batch, taps - 1, channels, seed=15)}


DEFINITION: dict[str, Callable[..., Step]] = {
    "short_step_": short,
    "modal_step_": modal,
    "window_step_": window,
    "gated_modal_step_": lambda *args: gated(modal, *args),
    "gated_window_step_": lambda *args: gated(window, *args),
}
OPS = list(DEFINITION)


def cast(t: Any, device: str, dtype: torch.dtype) -> Any:
    if t is None:
        return None
    return t.to(device, dtype.to_complex() if t.is_complex() else dtype)


def check(
    tier: Tier,
    op: str,
    dtype: torch.dtype = torch.float64,
    layout: str = "contiguous",
    batch: int = 2,
    channels: int = 5,
    size: int = 4,
    taps: int = 3,
    optional: bool = True,
    imaginary: bool = False,
) -> None:
    arguments = given_to(op, batch, channels, size, taps, optional, imaginary)
    want = DEFINITION[op](*arguments.values())
    got = {name: cast(t, tier.device, dtype) for name, t in arguments.items()}
    for name in ("x", "z", "pre", "post", "memory", "last"):
        if got.get(name) is not None and got[name].numel():
            got[name] = laid_out(got[name], layout)
    before = {name: t.clone() for name, t in got.items() if t is not None}
    with tier():
        y = getattr(torch.ops.hyena, op)(*got.values())
    close(y, want[0], dtype)
    changed = ["last", "memory"] if op.startswith("gated") else ["memory"]
    for name, t in zip(changed, want[1:], strict=True):
        close(got[name], t, dtype)
    for name in before.keys() - set(changed):
        assert torch.equal(got[name], before[name]), name


@pytest.mark.parametrize("dtype", WIDE, ids=str)
@pytest.mark.parametrize("layout", [layout for layout in LAYOUTS if layout != "expanded"])
@pytest.mark.parametrize("op", OPS)
def test_layouts(tier: Tier, op: str, layout: str, dtype: torch.dtype) -> None:
    for imaginary in (False, True) if "modal" in op else (False,):
        check(tier, op, dtype, layout, batch=3, channels=21, imaginary=imaginary)


@given(data=st.data())
@pytest.mark.parametrize("op", OPS)
def test_anything(tier: Tier, op: str, data: st.DataObject) -> None:
    sizes = st.sampled_from([1, 2, 3, 4, 7, 8, 9, 15, 16, 17, 33])
    check(
        tier,
        op,
        data.draw(st.sampled_from(WIDE)),
        batch=data.draw(st.integers(0, 3)),
        channels=data.draw(st.one_of(sizes, st.integers(1, 150))),
        size=data.draw(sizes),
        taps=data.draw(st.integers(1, 5)),
        optional=data.draw(st.booleans()),
        imaginary=data.draw(st.booleans()),
    )


@pytest.mark.parametrize("op", OPS)
def test_work_that_threads_share(tier: Tier, op: str) -> None:
    check(tier, op, torch.float32, batch=9, channels=530, size=64, taps=40, imaginary=True)


@pytest.mark.parametrize("op", OPS)
def test_steps_are_what_a_whole_row_is(tier: Tier, op: str) -> None:
    """Many in turn: nothing of the memory is lost, or moved twice."""
    arguments = given_to(op, 2, 6, 9, 4, True, False)
    if "pole" in arguments:
        arguments["pole"] = arguments["pole"].tanh()
    memories = [n for n in ("last", "memory") if n in arguments]
    want = {n: torch.zeros_like(arguments[n]) for n in memories}
    got = {n: cast(t, tier.device, torch.float64) for n, t in arguments.items()} | {
        n: t.clone().to(tier.device) for n, t in want.items()
    }
    first = next(iter(arguments))
    for i in range(25):
        x = rand(*arguments[first].shape, seed=100 + i)
        y_want, *moved = DEFINITION[op](*({**arguments, **want, first: x}).values())
        want = dict(zip(memories, moved, strict=True))
        with tier():
            y = getattr(torch.ops.hyena, op)(*({**got, first: x.to(tier.device)}).values())
        close(y, y_want, torch.float64)


@pytest.mark.parametrize("imaginary", [False, True], ids=["real", "complex"])
@pytest.mark.parametrize("op", OPS)
def test_opcheck(device: str, op: str, imaginary: bool) -> None:
    arguments = given_to(op, 2, 4, 3, 3, True, imaginary)
    torch.library.opcheck(getattr(torch.ops.hyena, op).default, tuple(arguments.values()))


@pytest.mark.parametrize("op", OPS)
def test_its_call_is_differentiated_and_traced_in_operations_of_torch(op: str) -> None:
    """Where autograd or a compiler looks on, nothing is a kernel."""
    arguments = given_to(op, 2, 4, 3, 3, True, False)
    first, call = next(iter(arguments)), getattr(ops, op)

    def of(x: Tensor) -> Tensor:
        return call(*({n: None if t is None else t.clone() for n, t in arguments.items()} | {first: x}).values())

    x = arguments[first]
    assert torch.autograd.gradcheck(of, x.clone().requires_grad_())
    compiled = torch.compile(of, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), of(x))


@pytest.mark.parametrize("op", OPS)
def test_an_expanded_memory_is_refused(tier: Tier, op: str) -> None:
    """Several of its entries are one number in memory."""
    arguments = given_to(op, 2, 4, 3, 3, True, False)
    arguments = {n: cast(t, tier.device, torch.float32) for n, t in arguments.items()}
    arguments["memory"] = arguments["memory"][:1].expand(2, -1, -1)
    with tier(), pytest.raises(ValueError, match=r"memory of shape \(2, .*pass"):
        getattr(torch.ops.hyena, op)(*arguments.values())


@pytest.mark.parametrize(
    ("op", "change", "message"),
    [
        ("short_step_", {"x": (2, 2, 5)}, r"x must be .* got torch.float32 of shape \(2, 2, 5\)"),
        ("gated_modal_step_", {"z": (2, 1, 14)}, r"z of 14 channels is not two gates and a value"),
        (
            "window_step_",
            {"memory": (2, 5, 5)},
            r"memory must be torch.float32 of shape \(2, 3, 5\), got .*\(2, 5, 5\)",
        ),
    ],
)
def test_errors_name_the_numbers(op: str, change: dict[str, tuple[int, ...]], message: str) -> None:
    arguments = {n: cast(t, "cpu", torch.float32) for n, t in given_to(op, 2, 5, 4, 3, True, False).items()}
    arguments |= {name: torch.zeros(shape) for name, shape in change.items()}
    with ops.fallback_only(), pytest.raises(ValueError, match=message):
        getattr(torch.ops.hyena, op)(*arguments.values())


def mutable() -> list[str]:
    """Ops that change an argument."""
    return [
        name
        for name in OP_NAMES
        if any(a.alias_info is not None for a in getattr(torch.ops.hyena, name).default._schema.arguments)
    ]


def test_these_are_all_ops_that_change_an_argument() -> None:
    assert sorted(mutable()) == sorted([*OPS, "add_conv_"])


@pytest.mark.parametrize("wrapped", [True, False], ids=["function", "op"])
@pytest.mark.parametrize("op", OPS)
def test_autograd_knows_of_the_change(tier: Tier, op: str, wrapped: bool) -> None:
    """What was computed from a memory cannot be differentiated any more, rather than wrongly."""
    arguments = given_to(op, 2, 5, 4, 3, optional=True, imaginary=False)
    got = {name: cast(t, tier.device, torch.float32) for name, t in arguments.items()}
    changed = [got[name] for name in ("last", "memory") if name in got]
    p = torch.ones((), device=tier.device, requires_grad=True)
    before = [(p * t).sum() for t in changed]
    with tier():
        getattr(ops if wrapped else torch.ops.hyena, op)(*got.values())
    for loss in before:
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()
    with torch.inference_mode():  # where nothing counts changes
        inside = [None if t is None else t.clone() for t in got.values()]
        with tier():
            getattr(ops if wrapped else torch.ops.hyena, op)(*inside)


@pytest.mark.parametrize("op", OPS)
def test_every_argument_has_its_gradient(tier: Tier, op: str) -> None:
    arguments = given_to(op, 2, 5, 4, 3, optional=True, imaginary=False)
    for name in arguments:
        got = {n: cast(t, tier.device, torch.float64).clone() for n, t in arguments.items()}
        leaf = got[name].requires_grad_()
        got[name] = leaf * 1  # a memory that is a leaf cannot be changed
        with tier():
            y = getattr(ops, op)(*got.values())
            (found,) = torch.autograd.grad(sum(got.get(n, y).sum() for n in ("y", "last", "memory")), leaf)
        leaf = arguments[name].clone().requires_grad_()
        y, *memories = DEFINITION[op](*{**arguments, name: leaf}.values())
        outputs = [y, *([y] if len(memories) == 1 else []), *memories]
        (want,) = torch.autograd.grad(sum(t.sum() for t in outputs), leaf)
        close(found, want, torch.float64)
    for name in ("last", "memory"):
        if name in arguments:
            got = {n: cast(t, tier.device, torch.float64).clone() for n, t in arguments.items()}
            got[name].requires_grad_()
            with tier(), pytest.raises(RuntimeError, match="leaf Variable that requires grad"):
                getattr(ops, op)(*got.values())
