"""Malformed calls of every registered op, past its Python call, as exported programs and other languages call it.

Each must raise an error that names the argument; none may return numbers, or read memory that is not its own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from helpers.malformed import Call, argument_names, calls, variants, well_formed
from hyena import ops
from hyena.ops._library import OP_NAMES

# Whether the kernels check for themselves yet; those that do not would read out of bounds here.
KERNELS_CHECK = True
CALLS = list(calls())
ERRORS = (RuntimeError, ValueError, TypeError)


def _names_of(call: Call) -> list[str]:
    """How an error may name the argument."""
    if call.argument in ("x", "z", "v", "u", "h", "features", "size"):
        return argument_names(call.op)  # the others no longer fit it
    together = {"filters": ["out"], "spectrum": ["d"], "d": ["z", "spectrum"], "freq": ["first", "inner", "biases"]}
    together |= {"inner": ["biases"], "out": ["deltas", "filters"], "dh": ["filters"]}
    if call.op.endswith("_step_"):  # memories are as wide as what they are of
        together |= {"weight": ["memory", "last"], "pole": ["residue", "memory"]}
    return [call.argument, *together.get(call.argument, [])]


def _raises(run: Callable[..., Any], call: Call) -> str | None:
    """What is wrong with how ``run`` answers; None if it refuses the call."""
    try:
        run(*call.arguments)
    except ERRORS as error:
        text = str(error)
        if "None" in call.fault or any(name in text for name in _names_of(call)):
            return None
        # What the dispatcher refuses (a tensor elsewhere, a layout without a kernel) names devices or layouts.
        if any(word in text for word in ("meta", "parse", "Sparse", "storage")):
            return None
        return f"{call}: does not name {call.argument}: {text[:200]}"
    return f"{call}: returned"


def _check(run: Callable[[str], Callable[..., Any]], op: str) -> None:
    wrong = [found for call in CALLS if call.op == op and (found := _raises(run(op), call)) is not None]
    assert not wrong, "\n".join(wrong)


def _op(name: str) -> Callable[..., Any]:
    return getattr(torch.ops.hyena, name)


@pytest.mark.parametrize("op", OP_NAMES)
def test_well_formed_calls_are_taken(op: str) -> None:
    for packed, blocked in variants(op):
        _op(op)(*well_formed(op, packed, blocked).values())


@pytest.mark.parametrize("op", OP_NAMES)
def test_the_fallback_refuses(op: str) -> None:
    def run(name: str) -> Callable[..., Any]:
        return _op(f"{name}_fallback")

    _check(run, op)


@pytest.mark.skipif(not KERNELS_CHECK, reason="kernels do not check their arguments yet")
@pytest.mark.parametrize("op", OP_NAMES)
def test_the_kernel_refuses(op: str) -> None:
    if not ops.has_kernel(op, torch.device("cpu")):
        pytest.skip("no kernel here, where the fallback is tested")
    _check(_op, op)


@pytest.mark.parametrize("op", OP_NAMES)
def test_the_fake_refuses(op: str) -> None:
    """What a trace would take, and the op would not."""

    def fake(a: Any) -> Any:
        return a.to("meta") if isinstance(a, Tensor) else a

    skipped = ("empty storage", "on meta", "[", "sparse")
    wrong = [
        str(call)
        for call in CALLS
        if call.op == op and not any(word in call.fault for word in skipped)
        if _raises(lambda *args: _op(op)(*map(fake, args)), call) is not None
    ]
    assert not wrong, "\n".join(wrong)
