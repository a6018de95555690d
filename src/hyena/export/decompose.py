"""The library's ops in plain aten, for programs that leave PyTorch.

Dimensions: B batch, L length, C channels, G filter channels, K taps, F long filters, N order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.fx import Node
from torch.nn import functional as F

from hyena.export.transform import long_conv, sides
from hyena.ops import compute_dtype

# Which argument of an op is a spectrum.
_TAKE_SPECTRA = {"hyena.gated_conv.default": 1, "hyena.recurrence.default": 3}


def decompose(program: ExportedProgram) -> ExportedProgram:
    """The same program in plain aten: none of this library's ops is left, and no complex number.

    Long convolutions become real matrix products (see ``hyena/export/transform.py``): ``O(L^1.5)``, at any batch and
    length that the program takes, equal to the ops to rounding. What else is in the program stays as it is.

    Args:
        program: from ``torch.export.export``, of a module that contains this library's layers.

    Returns:
        A program of its own; ``program`` is left as it is.

    Raises:
        TypeError: ``program`` is no ``ExportedProgram``.
        ValueError: an op without such a form (exact decoding in tiles, gradients, packed rows), by name.
    """
    if not isinstance(program, ExportedProgram):
        raise TypeError(
            f"decompose takes a torch.export.ExportedProgram, got {type(program).__name__}: "
            "torch.export.export(module, args) makes one"
        )
    table = _table()
    unknown = sorted(str(op) for op in _own_ops(program) - table.keys())
    if unknown:
        raise ValueError(
            f"no plain form of {', '.join(unknown)}: of this library's ops, {', '.join(sorted(map(str, table)))} have "
            "one (hyena.export.step_model decodes without the others)"
        )
    _check_spectra(program)
    plain = program.run_decompositions(table)
    left = sorted(map(str, _own_ops(plain)))
    if left:
        raise ValueError(f"torch {torch.__version__} left {', '.join(left)} in the program")
    return plain


def _own_nodes(program: ExportedProgram) -> Iterator[Node]:
    for module in program.graph_module.modules():
        for node in getattr(getattr(module, "graph", None), "nodes", ()):
            if node.op == "call_function" and getattr(node.target, "namespace", None) == "hyena":
                yield node


def _own_ops(program: ExportedProgram) -> set[Any]:
    return {node.target for node in _own_nodes(program)}


def _check_spectra(program: ExportedProgram) -> None:
    """Whether every spectrum is made in the program: one from outside has a backend's own order."""
    for node in _own_nodes(program):
        name = str(node.target)
        if name not in _TAKE_SPECTRA:
            continue
        made: Any = node.args[_TAKE_SPECTRA[name]]
        if made.meta["val"].size(0) == 0:  # a recurrence without long filters
            continue
        while getattr(made.target, "namespace", None) == "aten" and made.args and isinstance(made.args[0], Node):
            made = made.args[0]
        if made.target != torch.ops.hyena.filter_spectrum.default:
            raise ValueError(
                f"{name} takes a spectrum ({made.name}) that the program does not make itself, in an order that only "
                "this library knows: export the module that makes it"
            )


def _table() -> dict[Any, Callable[..., Any]]:
    """For each op the same in aten. Arguments were checked when the program was traced."""
    own = torch.ops.hyena
    return {
        own.project.default: _linear,
        own.project_channel_major.default: _linear,
        own.project_from_channel_major.default: _linear,
        own.short_conv.default: _short_conv,
        own.direct_conv.default: _direct_conv,
        own.filter_spectrum.default: _filter_spectrum,
        own.gated_conv.default: _gated_conv,
        own.recurrence.default: _recurrence,
        own.implicit_filter.default: _implicit_filter,
    }


def _refuse_sections(name: str, sectioned: bool) -> None:
    if sectioned:
        raise ValueError(f"{name} of sections has no plain form: make the spectrum as long as the row")


def _refuse_packed(op: str, cu_seqlens: Tensor | None) -> None:
    if cu_seqlens is not None:
        raise ValueError(
            f"hyena::{op} of packed rows (cu_seqlens) has no plain form: how many rows there are is known when it runs "
            "alone; export the module with padded rows and a mask"
        )


def _linear(u: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return F.linear(u, weight, bias)


def _masked(x: Tensor, mask: Tensor | None) -> Tensor:
    return x if mask is None else torch.where(mask[..., None], x, torch.zeros((), dtype=x.dtype, device=x.device))


def _short_conv_rows(z: Tensor, weight: Tensor, bias: Tensor | None, mask: Tensor | None) -> Tensor:
    x, w = _masked(z, mask), weight.to(z.dtype)
    taps, length = w.size(1), z.size(1)
    padded = F.pad(x, (0, 0, taps - 1, 0))
    y = x * w[:, taps - 1]
    for j in range(taps - 1):
        y = y + padded[:, j : j + length] * w[:, j]
    if bias is not None:
        y = y + bias.to(z.dtype)
    return _masked(y, mask)


def _short_conv(
    z: Tensor, weight: Tensor, bias: Tensor | None, mask: Tensor | None, cu_seqlens: Tensor | None
) -> Tensor:
    _refuse_packed("short_conv", cu_seqlens)
    return _short_conv_rows(z.to(compute_dtype(z)), weight, bias, mask).to(z.dtype)


def _filter_spectrum(h: Tensor, size: int, causal: bool) -> Tensor:
    """Taps in the place of a spectrum: ``(F, K, G)``, two-sided ``(F, 2, K, G)``.

    They are transformed where the length of the rows is known, to no more points than those need.
    """
    h = h.to(compute_dtype(h))
    return h * 1 if causal else sides(h)  # an op's result is no alias


def _gated(v: Tensor, taps: Tensor, d: Tensor | None, pre: Tensor | None, post: Tensor | None) -> Tensor:
    p = v if pre is None else v * pre.to(v.dtype)
    y = long_conv(p, taps)
    if d is not None:
        y = y + d.to(p.dtype) * p
    return y if post is None else y * post.to(y.dtype)


def _gated_conv(
    v: Tensor,
    spectrum: Tensor,
    d: Tensor | None,
    pre: Tensor | None,
    post: Tensor | None,
    cu_seqlens: Tensor | None,
    sectioned: bool,
) -> Tensor:
    _refuse_packed("gated_conv", cu_seqlens)
    _refuse_sections("gated_conv", sectioned)
    return _gated(v.to(compute_dtype(v)), spectrum, d, pre, post).to(v.dtype)


def _recurrence(
    z: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    spectrum: Tensor,
    d: Tensor,
    mask: Tensor | None,
    cu_seqlens: Tensor | None,
    z_bias: Tensor | None,
    sectioned: bool,
) -> Tensor:
    _refuse_packed("recurrence", cu_seqlens)
    _refuse_sections("recurrence", sectioned)
    wide = z.to(compute_dtype(z))
    if z_bias is not None:
        wide = wide + z_bias.to(wide.dtype)
    filters, channels = d.size(0), d.size(1)
    *x, v = _short_conv_rows(wide, weight, bias, mask).split(channels, dim=2)
    gates: list[Tensor | None] = list(x[:0:-1])  # x^{N-1} … x^1
    if filters == len(x):
        gates.insert(0, None)  # the paper's recurrence convolves the value first
    for i, gate in enumerate(gates):
        v = _gated(v, spectrum[i], d[i], gate, None)
    return (x[0] * v).to(z.dtype)


def _direct_conv(
    v: Tensor,
    h: Tensor,
    d: Tensor | None,
    pre: Tensor | None,
    post: Tensor | None,
    cu_seqlens: Tensor | None,
    causal: bool,
) -> Tensor:
    _refuse_packed("direct_conv", cu_seqlens)
    p, length = v.to(compute_dtype(v)), v.size(1)
    if pre is not None:
        p = p * pre.to(p.dtype)
    taps = h.to(p.dtype)
    if taps.size(1) != p.size(2):
        taps = taps.repeat_interleave(p.size(2) // taps.size(1), dim=1)
    # Lag ``j`` of ``before`` earlier and ``after`` later inputs stands at place ``before - j`` of the padded row.
    after = 0 if causal else (h.size(0) - 1) // 2
    before = h.size(0) - 1 - after
    padded = F.pad(p, (0, 0, before, after))
    y = torch.zeros_like(p) if d is None else p * d.to(p.dtype)
    for i in range(h.size(0)):
        at = h.size(0) - 1 - i  # of lag i - after
        y = y + taps[i] * padded[:, at : at + length]
    return (y if post is None else y * post.to(y.dtype)).to(v.dtype)


def _implicit_filter(
    features: Tensor,
    time: Tensor,
    first: Tensor,
    inner: Tensor,
    biases: Tensor,
    freq: Tensor,
    out: Tensor,
    deltas: Tensor,
    shift: float,
    filters: int,
) -> Tensor:
    x = features
    for i in range(biases.size(0)):
        x = torch.sin(freq * F.linear(x, first if i == 0 else inner[i - 1], biases[i]))
    decay = torch.exp(-time[:, None] * deltas.abs())
    h = F.linear(x, out) * (decay + shift if shift != 0 else decay)
    return h.reshape(features.size(0), filters, out.size(0) // filters).transpose(0, 1)
