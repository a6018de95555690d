"""Where time goes: the time of each kernel of the mixing step and of the operator."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from gpu_sections.bench import HALF, Bench, Job, K, call, row
from hyena import HyenaOperator


def kernels(b: Bench) -> Iterator[Job]:
    """The time of each kernel, by name: of the mixing step and of the operator's training step."""
    for length in b.lengths(1 * K, 4 * K, 16 * K, 64 * K, 1024 * K):
        for what in ("recurrence forward", "recurrence forward+backward", "operator training step"):
            yield f"{what} bf16 L={length}", partial(_kernels, b, what, length)


def _kernels(b: Bench, what: str, length: int) -> dict[str, Any]:
    batch = b.batch(length, 1 << (18 if what.startswith("operator") else 20))
    if what.startswith("operator"):
        layer = HyenaOperator(b.width, length, device=b.device, dtype=HALF)
        u = torch.randn(batch, length, b.width, device=b.device, dtype=HALF, requires_grad=True)
        dy = torch.randn_like(u)

        def run() -> object:
            with torch.enable_grad():
                return layer(u).backward(dy)
    else:
        spectrum, _ = b.spectra(length, b.width)
        run = call(b, "recurrence", batch, length, HALF, spectrum, training=what.endswith("backward"))
    run()
    if not b.toy:
        torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CPU if b.toy else ProfilerActivity.CUDA]) as recorded:
        run()
        if not b.toy:
            torch.cuda.synchronize()
    found = [
        {"kernel": e.key[:160], "calls": e.count, "us": e.self_cpu_time_total if b.toy else e.self_device_time_total}
        for e in recorded.key_averages()
    ]
    found.sort(key=lambda e: -e["us"])
    return row(sum(e["us"] for e in found) / 1e3, "ms in kernels", B=batch, kernels=found[:20])
