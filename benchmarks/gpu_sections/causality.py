"""What a loud future does to the past.

Nothing where the convolution is taken tap by tap; through a transform, its rounding reaches every output of the row.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from speed import fallback
from torch import Tensor

from gpu_sections.bench import FULL, HALF, NAMES, Bench, H, Job, K, row
from hyena import ops

LOUD = 1e4


def causality(b: Bench) -> Iterator[Job]:
    """Relative error of the first half of the outputs, where inputs of the second half are 1e4 times as loud."""
    for op in ("gated_conv", "direct_conv"):
        for dtype in (HALF, FULL):
            for length in b.lengths(1 * K, 4 * K, 16 * K, 64 * K):
                if op == "gated_conv" or length <= 4 * K:
                    yield f"{op} {NAMES[dtype]} L={length}", partial(_leak, b, op, dtype, length)


def _leak(b: Bench, op: str, dtype: torch.dtype, length: int) -> dict[str, Any]:
    if op == "direct_conv" and not ops.has_kernel(op, torch.device(b.device)):
        return row(None, "of the past", note="no kernel of direct_conv for this device")
    channels, half = 8 if b.toy else 64, length // 2
    h = torch.randn(length, channels, device=b.device) / math.sqrt(length)
    v, pre, post = b.tensors(3, 2, length, channels, dtype)
    loud = v.clone()
    loud[:, half:] *= LOUD

    def through(call: Callable[..., Any], x: Tensor) -> Tensor:
        if op == "direct_conv":
            return call(H.direct_conv, x, h, None, pre, post, None, True)
        spectrum = call(H.filter_spectrum, h[None], ops.transform_length(length), True)
        return call(H.gated_conv, x, spectrum[0], None, pre, post, None, False)

    def kernel(f: Callable[..., Any], *a: object) -> Any:
        return f(*a)

    exact = _exact(v, h, pre, post)[:, :half]
    quiet, shaken, plain = through(kernel, v), through(kernel, loud), through(fallback, loud)
    errors = {name: _error(y[:, :half], exact) for name, y in (("quiet", quiet), ("loud", shaken), ("fallback", plain))}
    same = bool(torch.equal(quiet[:, :half], shaken[:, :half]))
    return row(errors["loud"], "of the past", **{f"error {name}": e for name, e in errors.items()}, same_bits=same)


def _exact(v: Tensor, h: Tensor, pre: Tensor, post: Tensor) -> Tensor:
    """The same by real transforms in float64, of the quiet input."""
    size = 2 * v.size(1)
    x = torch.fft.rfft(v.double() * pre.double(), size, dim=1) * torch.fft.rfft(h.double(), size, dim=0)
    return torch.fft.irfft(x, size, dim=1)[:, : v.size(1)] * post.double()


def _error(got: Tensor, want: Tensor) -> float:
    return ((got.double() - want).square().mean() / want.square().mean()).sqrt().item()
