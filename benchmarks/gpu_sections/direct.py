"""The convolution tap by tap: short filters of long rows, and filters as long as their rows."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from measure import variants

from gpu_sections.bench import HALF, Bench, H, Job, K, row, step
from hyena import ops

GRADIENT_OF_SPECTRUM = 3  # among the results of gated_conv_backward


def direct_conv(b: Bench) -> Iterator[Job]:
    """Share of the bandwidth bound, and the time of a gated convolution of the same taps by transforms over it."""
    shapes = [(taps, length) for length in b.lengths(4 * K, 16 * K) for taps in ((7, 32) if b.toy else (7, 128, 512))]
    shapes += [(length, length) for length in ([64] if b.toy else (512, 1 * K, 2 * K, 4 * K))]
    for taps, length in shapes:
        for training in (False, True):
            name = f"{taps} taps {'forward+backward' if training else 'forward'} bf16 L={length}"
            yield name, partial(_direct, b, taps, length, training)


def _direct(b: Bench, taps: int, length: int, training: bool) -> dict[str, Any]:
    if not ops.has_kernel("direct_conv", torch.device(b.device)):
        return row(None, "of the bandwidth bound", note="no kernel of direct_conv for this device")
    batch = 2 if b.toy else 64
    h = torch.randn(taps, b.width, device=b.device) / math.sqrt(taps)
    count = variants(4 * batch * length * b.width * HALF.itemsize)
    turns = {
        "direct": [directly(b, batch, length, h, training) for _ in range(count)],
        "gated_conv": [by_transforms(b, batch, length, h, training) for _ in range(count)],
    }
    times = b.times(turns)
    # Three parts in, one out; backward: those three and dy in, three gradients out.
    bound = (4 + 7 * training) * batch * length * b.width * HALF.itemsize / b.rates["copy"]
    ms = {f"{name} ms": seconds * 1e3 for name, seconds in times.items()}
    against = times["gated_conv"] / times["direct"]
    more = {"bound ms": bound * 1e3, "x faster than gated_conv": against}
    return row(bound / times["direct"], "of the bandwidth bound", B=batch, **ms, **more)


def directly(b: Bench, batch: int, length: int, h: torch.Tensor, training: bool) -> Callable[[], object]:
    """A call of direct_conv with gates, on inputs of its own."""
    v, pre, post, dy = b.tensors(4, batch, length, b.width, HALF)
    arguments = (v, h, torch.randn(b.width, device=b.device), pre, post, None, True)
    forward = partial(H.direct_conv, *arguments)
    return step(forward, partial(H.direct_conv_backward, dy, *arguments)) if training else forward


def by_transforms(b: Bench, batch: int, length: int, h: torch.Tensor, training: bool) -> Callable[[], object]:
    """The same by gated_conv; a step makes the spectrum and the gradient of the taps, as direct_conv does."""
    v, pre, post, dy = b.tensors(4, batch, length, b.width, HALF)
    d, size = torch.randn(b.width, device=b.device), ops.transform_length(length)
    spectrum = ops.filter_spectrum(h[None], size)

    def run() -> None:
        if not training:
            H.gated_conv(v, spectrum[0], d, pre, post, None, False)
            return
        made = ops.filter_spectrum(h[None], size)
        H.gated_conv(v, made[0], d, pre, post, None, False)
        gradients = H.gated_conv_backward(dy, v, made[0], d, pre, post, None, False)
        H.filter_spectrum_backward(gradients[GRADIENT_OF_SPECTRUM][None], h[None], made.size(2) - 1, True)

    return run
