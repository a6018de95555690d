"""Where and how the sections measure: the device, its inputs, calls of the ops, rows of a record.

A section yields jobs, ``(what, measure)``; ``measure()`` returns a row: a value with its unit, the bar it has to reach
(or None) and whatever explains it. Tensors are ``(B, L, C)`` in memory as ``(B, C, L)``, a GPU's natural order.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from measure import queued
from speed import fallback
from torch import Tensor

from hyena import ops

H = torch.ops.hyena
Job = tuple[str, Callable[[], dict[str, Any]]]
HALF, FULL = torch.bfloat16, torch.float32
K = 1024
NAMES = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32", torch.float64: "fp64"}


class Bench:
    """Where to measure, and how large: on the CPU everything is a toy."""

    def __init__(self, device: str) -> None:
        self.device, self.toy = device, device == "cpu"
        self.width = 8 if self.toy else 768
        self.rates: dict[str, float] = {}  # from the section "device": bytes and operations a second

    def lengths(self, *wanted: int) -> list[int]:
        """The lengths of a section; two short ones in a dry run."""
        return [64, 96] if self.toy else list(wanted)

    def batch(self, length: int, tokens: int) -> int:
        """Rows of a batch of so many positions."""
        return 2 if self.toy else max(1, tokens // length)

    def tensors(self, count: int, batch: int, length: int, channels: int, dtype: torch.dtype) -> list[Tensor]:
        """Normal numbers, ``(B, L, C)`` in memory as ``(B, C, L)``."""
        make = partial(torch.randn, batch, channels, length, device=self.device, dtype=dtype)
        return [make().transpose(1, 2) for _ in range(count)]

    def spectra(self, length: int, channels: int) -> tuple[Tensor, Callable[[], Tensor]]:
        """The kernels' spectrum of a filter, ``(1, C, P + 1, 2)``, and a function for the fallback's."""
        h = torch.randn(1, length, channels, device=self.device) / math.sqrt(length)
        size = ops.transform_length(length)
        return ops.filter_spectrum(h, size), lambda: fallback(H.filter_spectrum, h, size, True)

    def times(self, functions: dict[str, Sequence[Callable[[], object]]], repeats: int = 20) -> dict[str, float]:
        """Seconds of each function."""
        return queued(functions, repeats=2 if self.toy else repeats, device=self.device)

    def time(self, turns: Sequence[Callable[[], object]], repeats: int = 20) -> float:
        """Seconds of one function."""
        return self.times({"it": turns}, repeats)["it"]


def row(
    value: float | None, unit: str, bar: float | None = None, *, lower: bool = False, **rest: Any
) -> dict[str, Any]:
    """A row; with a bar, ``ok`` says whether the value reaches it (with ``lower``: stays at or under it)."""
    ok = None if bar is None or value is None else bool(value <= bar if lower else value >= bar)
    return {"value": value, "unit": unit, "bar": bar, "ok": ok, **rest}


def step(forward: Callable[[], object], backward: Callable[[], object]) -> Callable[[], None]:
    """One after the other, keeping nothing."""

    def run() -> None:
        forward()
        backward()

    return run


def calls(
    b: Bench,
    op: str,
    batch: int,
    length: int,
    dtype: torch.dtype,
    spectrum: Tensor,
    through: Callable[..., Any] = lambda f, *a: f(*a),
) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """An op's forward and its backward on inputs of their own, ``through`` the kernels or the fallback."""
    c = b.width
    d = torch.randn(1, c, device=b.device)
    (dy,) = b.tensors(1, batch, length, c, dtype)
    if op == "gated_conv":
        v, pre, post = b.tensors(3, batch, length, c, dtype)
        arguments: tuple[Any, ...] = (v, spectrum[0], d[0], pre, post, None, False)
        forward, backward = H.gated_conv, H.gated_conv_backward
    else:
        (z,) = b.tensors(1, batch, length, 3 * c, dtype)
        weight, bias = torch.randn(3 * c, 3, device=b.device), torch.randn(3 * c, device=b.device)
        z_bias = torch.randn(3 * c, device=b.device)  # the projection's, which the operator leaves to this op on a GPU
        arguments = (z, weight, bias, spectrum, d, None, None, z_bias, False)
        forward, backward = H.recurrence, H.recurrence_backward
    return partial(through, forward, *arguments), partial(through, backward, dy, *arguments)


def call(
    b: Bench,
    op: str,
    batch: int,
    length: int,
    dtype: torch.dtype,
    spectrum: Tensor,
    training: bool,
    through: Callable[..., Any] = lambda f, *a: f(*a),
) -> Callable[[], object]:
    """A call of an op, or a step: forward and backward."""
    forward, backward = calls(b, op, batch, length, dtype, spectrum, through)
    return step(forward, backward) if training else forward
