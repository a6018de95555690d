"""Calls of every registered op with one argument made wrong: what must raise, and never return numbers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hyena import ops
from hyena.ops._library import OP_NAMES

B, L, D, C, TAPS = 2, 12, 6, 4, 3
BLOCK = 16
TAKE_BLOCKS = [op for op in OP_NAMES if "recurrence" in op or op == "project_backward"]  # beside (B, L, C)
SIZE = ops.transform_length(L)
OTHER_DTYPES = [
    torch.float64,
    torch.float16,
    torch.float8_e4m3fn,
    torch.int64,
    torch.int32,
    torch.uint8,
    torch.bool,
    torch.complex64,
]


@dataclass(frozen=True)
class Call:
    """A call of ``hyena::<op>`` that raises, with the argument that is wrong and how."""

    op: str
    argument: str
    fault: str
    arguments: tuple[Any, ...]

    def __str__(self) -> str:
        return f"{self.op}({self.argument}: {self.fault})"


def argument_names(op: str) -> list[str]:
    """In the order of the schema."""
    return [a.name for a in getattr(torch.ops.hyena, op).default._schema.arguments]


def _row(channels: int, batch: int = B) -> Tensor:
    return torch.randn(batch, L, channels)


def _blocked_row(blocks: int, batch: int = B) -> Tensor:
    """Of so many channel blocks."""
    return torch.randn(batch, blocks, L, BLOCK)


def variants(op: str) -> Iterator[tuple[bool, bool]]:
    """Of well-formed calls: whether rows are packed, and whether sequences are in channel blocks."""
    names = argument_names(op)
    for blocked in (False, True) if op in TAKE_BLOCKS else (False,):
        for packed in (False, True) if "cu_seqlens" in names else (False,):
            yield packed, blocked


def well_formed(op: str, packed: bool = False, blocked: bool = False) -> dict[str, Any]:
    """Arguments that are right, float32 on the CPU."""
    batch = 1 if packed else B
    if blocked and op == "project_backward":
        return {"g": _blocked_row(1), "u": _blocked_row(3)}
    if blocked:
        found = _mixing(op.removesuffix("_backward"), batch, packed, BLOCK)
        found |= {"z": _blocked_row(3, batch), "dy": _blocked_row(1, batch)}
        return {name: found[name] for name in argument_names(op)}
    cu_seqlens = torch.tensor([0, 5, L]) if packed else None
    backward = op.endswith("_backward")
    kind = op.removesuffix("_backward")
    if kind == "short_conv":
        found = {"z": _row(D, batch), "weight": torch.randn(D, TAPS), "bias": torch.randn(D)}
        found |= {"mask": torch.rand(batch, L) < 0.7, "cu_seqlens": cu_seqlens, "dy": _row(D, batch)}
    elif kind == "filter_spectrum":
        found = {"h": torch.randn(2, 5, C), "size": SIZE, "causal": False, "ds": torch.randn(2, C, SIZE + 1, 2)}
    elif kind == "gated_conv":
        spectrum = torch.ops.hyena.filter_spectrum(torch.randn(1, 5, C), SIZE, True)[0]
        found = {n: _row(C, batch) for n in ("v", "pre", "post", "dy")}
        found |= {"spectrum": spectrum, "d": torch.randn(C), "cu_seqlens": cu_seqlens, "sectioned": False}
    elif kind == "direct_conv":
        found = {n: _row(C, batch) for n in ("v", "pre", "post", "dy")}
        found |= {"h": torch.randn(5, C), "d": torch.randn(C), "cu_seqlens": cu_seqlens, "causal": False}
    elif kind == "add_conv_":
        spectrum = torch.ops.hyena.filter_spectrum(torch.randn(1, 5, C), SIZE, True)[0]
        found = {"y": torch.randn(B, 7, C), "v": _row(C), "spectrum": spectrum}
    elif kind in ("recurrence", "direct_recurrence"):
        found = _mixing(kind, batch, packed, C)
    elif kind == "implicit_filter":
        found = {"features": torch.randn(L, 5), "time": torch.rand(L), "first": torch.randn(8, 5)}
        found |= {"inner": torch.randn(2, 8, 8), "biases": torch.randn(3, 8), "freq": torch.randn(8)}
        found |= {"out": torch.randn(2 * C, 8), "deltas": torch.rand(2 * C), "shift": 0.1, "filters": 2}
        found |= {"every": True, "dh": torch.randn(2, L, C)}
    elif op.endswith("_step_"):
        found = _step(op)
    elif op == "project_backward":
        return {"g": _row(C), "u": _row(D)}
    elif op == "project_channel_blocked":
        found = {"u": _row(D), "weight": torch.randn(2 * BLOCK, D), "bias": torch.randn(2 * BLOCK)}
    elif op == "project_from_channel_blocked":
        found = {"u": _blocked_row(3), "weight": torch.randn(C, 3 * BLOCK), "bias": torch.randn(C)}
    elif kind.startswith("project"):
        found = {"u": _row(D), "weight": torch.randn(C, D), "bias": torch.randn(C)}
    else:
        raise AssertionError(f"{op} is new: say here what its arguments are")
    names = argument_names(op)
    assert backward or "dy" not in names
    return {name: found[name] for name in names}


def _mixing(kind: str, batch: int, packed: bool, channels: int) -> dict[str, Any]:
    width = 3 * channels
    found = {"z": _row(width, batch), "weight": torch.randn(width, TAPS), "bias": torch.randn(width)}
    if kind == "recurrence":
        found |= {"spectrum": torch.ops.hyena.filter_spectrum(torch.randn(1, 5, channels), SIZE, True)}
        found |= {"d": torch.randn(1, channels), "sectioned": False}
    else:
        found |= {"h": torch.randn(5, channels), "d": torch.randn(channels), "causal": False}
    found |= {"mask": torch.rand(batch, L) < 0.7, "cu_seqlens": torch.tensor([0, 5, L]) if packed else None}
    return found | {"z_bias": torch.randn(width), "dy": _row(channels, batch)}


def _step(op: str) -> dict[str, Any]:
    channels = 3 * C if op.startswith("gated") else C
    found = {n: torch.randn(B, 1, C) for n in ("x", "pre", "post")} | {"z": torch.randn(B, 1, channels)}
    found |= {"weight": torch.randn(channels, TAPS), "bias": torch.randn(channels)}
    found |= {"pole": torch.rand(C, 5), "residue": torch.randn(C, 5), "first": torch.randn(C), "h": torch.randn(7, C)}
    found["last"] = torch.randn(B, TAPS - 1, channels)
    memory = {"short_step_": found["last"], "window_step_": torch.randn(B, 6, C)}
    return found | {"memory": memory.get(op.removeprefix("gated_"), torch.randn(B, C, 5))}


def _resized(t: Tensor, dim: int, by: int) -> Tensor:
    shape = list(t.shape)
    shape[dim] += by
    return torch.zeros(shape, dtype=t.dtype)


def _without_storage(t: Tensor) -> Tensor:
    t = t.clone()
    t.untyped_storage().resize_(0)
    return t


# Sizes that an argument itself decides: of any size, the call is right.
FREE = {
    ("short_conv", "weight", 1),
    ("short_conv_backward", "weight", 1),
    ("direct_recurrence", "weight", 1),
    ("direct_recurrence_backward", "weight", 1),
    ("recurrence", "weight", 1),
    ("recurrence_backward", "weight", 1),
    ("filter_spectrum", "h", 0),
    ("filter_spectrum", "h", 2),
    ("add_conv_", "y", 1),
    ("project_backward", "g", 2),
    ("project_backward", "u", 2),
}
for _op in ("project", "project_channel_major", "project_from_channel_major", "project_channel_blocked"):
    FREE |= {(_op, "weight", 0), (_op, "u", 0), (_op, "u", 1)}  # of the first size the bias has to be, too
FREE |= {("project_from_channel_blocked", "weight", 0)}
# Of sequences in channel blocks.
FREE_OF_BLOCKS = {
    ("project_from_channel_blocked", "u", 0),
    ("project_from_channel_blocked", "u", 2),
    ("project_backward", "g", 1),
    ("project_backward", "u", 1),
}


def _is_free(op: str, name: str, t: Tensor, dim: int) -> bool:
    if name in ("z", "dy", "u", "g") and t.dim() == 4:
        return (op, name, dim) in FREE_OF_BLOCKS
    return any((op, name, at) in FREE for at in (dim, dim - t.dim()))


def _faults(op: str, name: str, t: Tensor) -> Iterator[tuple[str, Tensor]]:
    for dim in range(t.dim()):
        free = _is_free(op, name, t, dim)
        for by in (-1, 1):
            roomy = name == "spectrum" and dim == t.dim() - 2 and by > 0  # of which a part is not used
            longer = op == "add_conv_" and name == "v" and dim == 1 and by < 0  # than y, still
            if not (free or roomy or longer) and t.size(dim) + by >= 0:
                yield f"size {t.size(dim) + by} at {dim}", _resized(t, dim, by)
    if t.dim() > 1 and t.size(0) != t.size(1) and not _is_free(op, name, t, 1):
        yield "transposed", t.transpose(0, 1)
    yield "0-d", torch.zeros((), dtype=t.dtype)
    yield "another dimension", t[None]
    yield "a dimension less", t[0]
    yield "no entries", torch.zeros([0] * t.dim(), dtype=t.dtype)
    for dtype in OTHER_DTYPES:
        if dtype != t.dtype:
            yield str(dtype), t.to(dtype)
    yield "empty storage", _without_storage(t)
    if (op, name) != ("filter_spectrum", "h"):  # the only tensor, wherever it is
        yield "on meta", t.to("meta")
    if t.dim() > 1 and t.is_floating_point():
        yield "sparse", t.to_sparse()


def _is_taken(op: str, name: str, fault: str) -> bool:
    """Whether the call is right after all."""
    floating = fault in ("torch.float64", "torch.float16")
    if op.startswith(("short_conv", "direct_", "gated_conv", "recurrence")) and floating:
        if name in ("weight", "bias", "d", "h", "z_bias"):
            return fault == "torch.float16"  # weights of a dtype of their own, not wider than the arithmetic
        # Beside a spectrum z cannot be wider.
        return name == "z" and (
            op in ("short_conv", "direct_recurrence") or (op == "recurrence" and fault == "torch.float16")
        )
    if op == "filter_spectrum" and name == "h":
        return floating
    if op == "filter_spectrum_backward" and name == "h":
        return fault == "torch.float16"  # its gradient is computed in float32
    return name == "cu_seqlens" and fault == "torch.int32"


def calls() -> Iterator[Call]:
    """Every malformed call."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for op in OP_NAMES:
            for packed, blocked in variants(op):
                yield from _calls(op, well_formed(op, packed, blocked), packed, blocked)


def _calls(op: str, good: dict[str, Any], packed: bool, blocked: bool) -> Iterator[Call]:
    kind = (", packed" if packed else "") + (", blocked" if blocked else "")
    schema = getattr(torch.ops.hyena, op).default._schema
    optional = {a.name for a in schema.arguments if str(a.type) == "Optional[Tensor]"}

    def call(name: str, fault: str, value: Any) -> Call:
        return Call(op, name, fault + kind, tuple({**good, name: value}.values()))

    for name, value in good.items():
        if isinstance(value, Tensor):
            if packed and name not in ("cu_seqlens", "z", "v"):
                continue
            for fault, wrong in _faults(op, name, value):
                if not _is_taken(op, name, fault) and not (name == "cu_seqlens" and "size" in fault):
                    yield call(name, fault, wrong)
            if name not in optional:
                yield call(name, "None", None)
    if packed:
        for at in ([0], [], [0, 5], [0, 5, L + 1], [1, L], [0, L, 5, L], [-1, L], [0, 7, 5, L]):
            yield call("cu_seqlens", str(at), torch.tensor(at, dtype=torch.int64))
    if "size" in good:
        for size in (0, -1, 2):
            yield call("size", str(size), size)
    if "filters" in good:
        for filters in (0, -1, 3):
            yield call("filters", str(filters), filters)
