"""Kept spectra miss every change of a filter; a filter that cannot be watched keeps none."""

from __future__ import annotations

import array
import dataclasses
import enum
import functools
import math
import os
import threading
import types
from collections.abc import Callable
from typing import Any, NamedTuple
from unittest import mock

import pytest
import torch
from torch import Tensor, nn

from hyena import HyenaFilter, HyenaOperator
from hyena.conv.cache import may_cache, watch_for_cache
from hyena.filters import ExponentialWindow, Filter, ModalFilter, PositionalEncoding, SineFFN
from hyena.filters.ffn import FilterLinear


class Mine(Filter):
    """Somebody's own: taps that whatever ``by`` is decides."""

    scale: Any = 1.0

    def __init__(self, by: object) -> None:
        super().__init__(8, 200)
        self.by = by

    def forward(self, length: int) -> Tensor:
        base = torch.cos(torch.arange(length)[:, None] * torch.arange(8)) * self.scale
        return (value(self.by) * base)[None]


def value(by: Any) -> Any:
    """The number in what a filter holds."""
    if callable(by):
        return value(by())
    if isinstance(by, dict):
        return value(by["deep"])
    if isinstance(by, (list, tuple, array.array)):
        return value(by[-1])
    if isinstance(by, (set, frozenset)):
        return sum(by)
    if hasattr(by, "scale"):
        return value(by.scale)
    return by.value if isinstance(by, enum.Enum) else by


@dataclasses.dataclass
class Config:
    scale: Any = 1.0


class Point(NamedTuple):
    x: float
    scale: Any


class Size(enum.Enum):
    SMALL = 1.0
    LARGE = 2.0


class Holder:
    def __init__(self) -> None:
        self.scale = 1.0


def closure(start: float) -> Callable[[], float]:
    scale = start

    def read() -> float:
        return scale

    def write(new: float) -> None:
        nonlocal scale
        scale = new

    read.write = write
    return read


def with_default(scale: float = 1.0) -> float:
    return scale


class Part(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self) -> Tensor:
        return self.scale


def setitem(key: object, new: object) -> Callable[[Mine], None]:
    return lambda m: m.by.__setitem__(key, new)


def put(new: object) -> Callable[[Mine], None]:
    return lambda m: setattr(m, "by", new)


def scale(new: object) -> Callable[[Mine], None]:
    return lambda m: setattr(m.by, "scale", new)


# What a filter holds, and how it changes.
HELD: dict[str, tuple[Callable[[], object], Callable[[Mine], None]]] = {
    "number": (lambda: 1.0, put(2.0)),
    "list": (lambda: [3.0, 1.0], setitem(1, 2.0)),
    "longer list": (lambda: [1.0], lambda m: m.by.append(2.0)),
    "dict": (lambda: {"deep": 1.0}, setitem("deep", 2.0)),
    "dict in a list in a dict": (lambda: {"deep": [{"deep": 1.0}]}, lambda m: m.by["deep"][0].update(deep=2.0)),
    "set": (lambda: {1.0}, lambda m: m.by.add(5.0)),
    "tuple with a list": (lambda: (0, [1.0]), lambda m: m.by[1].append(2.0)),
    "named tuple": (lambda: Point(0.0, [1.0]), lambda m: m.by.scale.append(2.0)),
    "tensor": (lambda: torch.ones(()), lambda m: m.by.mul_(2)),
    "tensor through data": (lambda: torch.ones(()), lambda m: m.by.data.mul_(2)),
    "tensor in a list": (lambda: [torch.ones(())], lambda m: m.by[0].mul_(2)),
    "dataclass": (Config, scale(2.0)),
    "namespace": (lambda: types.SimpleNamespace(scale=1.0), scale(2.0)),
    "enum": (lambda: Size.SMALL, put(Size.LARGE)),
    "another function": (lambda: lambda: 1.0, put(lambda: 2.0)),
    "default of a function": (
        lambda: types.FunctionType(with_default.__code__, {}, argdefs=(1.0,)),
        lambda m: setattr(m.by, "__defaults__", (2.0,)),
    ),
    "code of a function": (
        lambda: types.FunctionType((lambda: 1.0).__code__, {}),
        lambda m: setattr(m.by, "__code__", (lambda: 2.0).__code__),
    ),
    "closure": (lambda: closure(1.0), lambda m: m.by.write(2.0)),
    "partial": (lambda: functools.partial(max, [1.0]), lambda m: m.by.args[0].append(2.0)),
    "method": (lambda: Part().forward, lambda m: m.by.__self__.scale.data.fill_(2.0)),
    "module in a list": (lambda: [Part()], lambda m: m.by[0].scale.data.fill_(2.0)),
}


class WithList(Mine):
    """A list on the class, and a closure in a method's code."""

    scales: list[float] = [1.0]  # noqa: RUF012

    @property
    def scale(self) -> float:
        return self.scales[-1]

    def forward(self, length: int) -> Tensor:
        return super().forward(length)


def check(op: HyenaOperator, change: Callable[[nn.Module], object], *, cached: bool = True) -> None:
    x = torch.randn(1, 20, 8)
    with torch.no_grad():
        before = op(x)
        assert may_cache(op.conv.filter) == cached
        assert torch.equal(op(x), before)
        assert bool(len(op.conv._spectra)) == cached
        change(op.conv.filter)
        after = op(x)
        op.clear_cache()
        torch.testing.assert_close(after, op(x), rtol=0, atol=0)
    assert not torch.allclose(after, before)


@pytest.mark.parametrize("name", HELD)
def test_attributes_of_a_filter(name: str) -> None:
    make, change = HELD[name]
    check(HyenaOperator(8, 200, filter=Mine(make())).eval(), change)


def test_attributes_of_a_class() -> None:
    class Local(Mine):
        pass

    check(HyenaOperator(8, 200, filter=Local(1.0)).eval(), lambda m: setattr(type(m), "scale", 2.0))
    with mock.patch.object(WithList, "scales", [1.0]):
        check(HyenaOperator(8, 200, filter=WithList(1.0)).eval(), lambda m: type(m).scales.append(2.0))
    with mock.patch.object(WithList, "forward", lambda self, length: 3 * Mine.forward(self, length)):
        check(HyenaOperator(8, 200, filter=WithList(1.0)).eval(), lambda m: setattr(type(m), "forward", Mine.forward))


@pytest.mark.parametrize(
    ("held", "change"),
    [
        (array.array("d", [1.0]), setitem(0, 2.0)),
        (Holder(), scale(2.0)),
        ([Holder()], lambda m: setattr(m.by[0], "scale", 2.0)),
        (functools.partial(value, Holder()), lambda m: setattr(m.by.args[0], "scale", 2.0)),
        (functools.lru_cache(lambda: 1.0), put(2.0)),
    ],
    ids=["array", "object", "object in a list", "object in a function", "memo"],
)
def test_what_cannot_be_watched_is_not_kept(held: object, change: Callable[[Mine], None]) -> None:
    check(HyenaOperator(8, 200, filter=Mine(held)).eval(), change, cached=False)


def test_weights_without_memory_are_not_kept() -> None:
    with torch.no_grad():
        assert not may_cache(HyenaFilter(8, 200, device="meta").eval())


@pytest.mark.parametrize("kind", [HyenaFilter, SineFFN, FilterLinear, ExponentialWindow, PositionalEncoding])
def test_a_forward_replaced_on_a_class_of_ours(kind: type[nn.Module]) -> None:
    op, x = HyenaOperator(8, 200).eval(), torch.randn(1, 20, 8)
    original = kind.forward

    def double(*args: object) -> object:
        out = original(*args)
        return tuple(2 * o for o in out) if isinstance(out, tuple) else 2 * out

    with torch.no_grad():
        before = op(x)
        with mock.patch.object(kind, "forward", double):
            assert not torch.allclose(op(x), before)
        assert torch.equal(op(x), before)


def test_hooks_come_and_go() -> None:
    op, x = HyenaOperator(8, 200).eval(), torch.randn(1, 20, 8)
    with torch.no_grad():
        before = op(x)
        for part in op.conv.filter.modules():
            if isinstance(part, (nn.ModuleList, PositionalEncoding)):
                continue
            handle = part.register_forward_hook(lambda module, args, out: 2 * out)
            changed = op(x)
            assert not torch.allclose(changed, before)
            handle.remove()
            assert torch.equal(op(x), before)
        handle = nn.modules.module.register_module_forward_hook(
            lambda module, args, out: 2 * out if isinstance(module, SineFFN) else None
        )
        try:
            assert not torch.allclose(op(x), before)
        finally:
            handle.remove()
        assert torch.equal(op(x), before)


def test_the_librarys_filters_are_kept() -> None:
    for source in (HyenaFilter(8, 200), ModalFilter(8, 200), nn.utils.parametrizations.weight_norm(nn.Linear(2, 2))):
        with torch.no_grad():
            assert watch_for_cache(source.eval()) is not None


def test_a_module_that_holds_itself() -> None:
    source = HyenaFilter(8, 200).eval()
    source.parts = [source, source.ffn]
    source.parts.append(source.parts)
    with torch.no_grad():
        assert may_cache(source)


ENTERED = threading.Event()


class Slow(HyenaFilter):
    """Long enough to be forked in."""

    def forward(self, length: int) -> Tensor:
        ENTERED.set()
        threading.Event().wait(0.02)
        return super().forward(length)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_forks_while_another_thread_is_inside() -> None:
    """The child of a process whose other thread is in an eval forward goes on; 20 of 20."""
    done = threading.Event()
    op, x = HyenaOperator(8, 200, filter=Slow(8, 200)).eval(), torch.randn(1, 20, 8)
    with torch.no_grad():
        want = op(x)

    def busy() -> None:
        with torch.no_grad():
            while not done.is_set():
                op.clear_cache()
                op(x)

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # OpenMP's own threads do not survive a fork either
    thread = threading.Thread(target=busy)
    thread.start()
    try:
        for _ in range(20):
            ENTERED.clear()
            assert ENTERED.wait(10)
            child = os.fork()
            if child == 0:
                try:
                    with torch.no_grad():
                        os._exit(0 if torch.equal(op(x), want) else 2)
                finally:
                    os._exit(3)
            assert finished(child, 20) == 0
    finally:
        done.set()
        thread.join()
        torch.set_num_threads(threads)


def finished(child: int, seconds: float) -> int | None:
    """The exit code of a child process, None if it had to be killed."""
    wait = threading.Event()
    for _ in range(math.ceil(seconds / 0.01)):
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid == child:
            return os.waitstatus_to_exitcode(status)
        wait.wait(0.01)
    os.kill(child, 9)
    os.waitpid(child, 0)
    return None
