"""The device's own rates, and how near the kernels come to what they bound."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from measure import variants

from gpu_sections.bench import FULL, HALF, NAMES, Bench, Job, K, call, row
from hyena import ops


def device(b: Bench) -> Iterator[Job]:
    """The rates that rooflines are made of."""

    def copy() -> dict[str, Any]:
        source = torch.empty(1 << (20 if b.toy else 30), dtype=torch.uint8, device=b.device).random_()
        to = torch.empty_like(source)
        rate = 2 * source.numel() / b.time([lambda: to.copy_(source)])
        return row(rate / 1e9, "GB/s read and written", rate=rate)

    def product(dtype: torch.dtype) -> dict[str, Any]:
        n = 128 if b.toy else 8192
        x, y = (torch.randn(n, n, device=b.device, dtype=dtype) for _ in range(2))
        rate = 2 * n**3 / b.time([lambda: x @ y])
        return row(rate / 1e12, "TFLOP/s", rate=rate)

    yield "copy", copy
    for dtype in (HALF, FULL):
        yield f"matrix product {NAMES[dtype]}", partial(product, dtype)


def bandwidth(b: Bench) -> Iterator[Job]:
    """Time at the measured copy rate of the bytes that must move, over the time taken."""
    for dtype in (HALF, torch.float16, FULL):
        for length in b.lengths(1 * K, 2 * K, 4 * K, 8 * K, 16 * K):
            for op in ("gated_conv", "recurrence"):
                for mode in ("forward", "forward+backward"):
                    bar = 0.7 if (op, mode, dtype) == ("gated_conv", "forward", HALF) else None
                    name = f"{op} {mode} {NAMES[dtype]} L={length}"
                    yield name, partial(_share, b, op, mode == "forward+backward", dtype, length, bar)


def _share(b: Bench, op: str, training: bool, dtype: torch.dtype, length: int, bar: float | None) -> dict[str, Any]:
    batch, c = 2 if b.toy else 64, b.width
    spectrum, _ = b.spectra(length, c)
    turns = [
        call(b, op, batch, length, dtype, spectrum, training)
        for _ in range(variants(4 * batch * length * c * dtype.itemsize))
    ]
    seconds = b.time(turns)
    # Forward: three parts in, one out. Backward: those three and dy in, three gradients out.
    moved = (4 + 7 * training) * batch * length * c * dtype.itemsize
    points = ops.transform_length(length)
    # Two transforms of 5 P log2 P and a complex product; the backward makes the forward's again, and as many more.
    flops = batch * c * (10 * points * math.log2(points) + 8 * points) * (1 + 2 * training)
    bound, busy = moved / b.rates["copy"], 2 * flops / b.rates["matrix product fp32"]
    detail = {"B": batch, "ms": seconds * 1e3, "bound ms": bound * 1e3, "bound ms at half the fp32 rate": busy * 1e3}
    return row(bound / seconds, "of the bandwidth bound", bar, **detail)
