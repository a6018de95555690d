"""Errors of the kernels against those of plain PyTorch, in the same dtypes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from speed import fallback
from torch import Tensor

from gpu_sections.bench import FULL, HALF, NAMES, Bench, H, Job, row
from hyena import ops


def accuracy(b: Bench) -> Iterator[Job]:
    """Root mean square error against float64 arithmetic on the same inputs, kernels over fallback."""
    for dtype in (FULL, HALF, torch.float16):
        for length in b.lengths(1009, 4096, 16384, 65536):
            for op in ("gated_conv", "recurrence"):
                yield f"{op} {NAMES[dtype]} L={length}", partial(_accuracy, b, op, dtype, length)


def _accuracy(b: Bench, op: str, dtype: torch.dtype, length: int) -> dict[str, Any]:
    c, size = 8 if b.toy else 64, ops.transform_length(length)
    h = torch.randn(1, length, c, device=b.device) / math.sqrt(length)
    d = torch.randn(1, c, device=b.device)
    if op == "recurrence":
        given = [*b.tensors(1, 2, length, 3 * c, dtype)]
        given += [torch.randn(3 * c, 3, device=b.device), *torch.randn(2, 3 * c, device=b.device)]
    else:
        given = b.tensors(3, 2, length, c, dtype)
    (dy,) = b.tensors(1, 2, length, c, dtype)

    def results(call: Callable[..., Any], double: bool) -> list[Tensor]:
        """The output and every gradient but that of the spectrum, whose layout is each tier's own: the taps'."""
        cast = [t.double() if double else t for t in (*given, dy, d, h)]
        *x, g, skip, taps = cast
        spectrum = call(H.filter_spectrum, taps, size, True)
        if op == "recurrence":
            z, weight, bias, z_bias = x
            arguments = (z, weight, bias, spectrum, skip, None, None, z_bias, False)
            y, grads = call(H.recurrence, *arguments), call(H.recurrence_backward, g, *arguments)
            inner = grads[3]
        else:
            v, pre, post = x
            arguments = (v, spectrum[0], skip[0], pre, post, None, False)
            y, grads = call(H.gated_conv, *arguments), call(H.gated_conv_backward, g, *arguments)
            inner = grads[3][None]
        dh = call(H.filter_spectrum_backward, inner, taps, size, True)
        return [y, *grads[:3], *grads[4:], dh]

    exact = results(fallback, True)
    errors = {}
    for name, call in (("kernel", lambda f, *a: f(*a)), ("fallback", fallback)):
        errors[name] = [_error(got, want) for got, want in zip(results(call, False), exact, strict=True)]
    names = ["y", "dz", "dweight", "dbias", "dd", "dz_bias", "dh"]
    if op == "gated_conv":
        names = ["y", "dv", "dpre", "dpost", "dd", "dh"]
    kept = [dtype if name in ("y", "dz", "dv", "dpre", "dpost") else FULL for name in names]
    # Twice the fallback's, and an eps of the result's dtype where that one is all but exact.
    worst = max(
        k / (2 * f + torch.finfo(t).eps) for k, f, t in zip(errors["kernel"], errors["fallback"], kept, strict=True)
    )
    return row(worst, "of what is allowed", 1.0, lower=True, errors={n: dict(zip(names, e)) for n, e in errors.items()})


def _error(got: Tensor, want: Tensor) -> float:
    size = want.square().mean().sqrt().item()
    return (got.double() - want).square().mean().sqrt().item() / max(size, 1e-300)
