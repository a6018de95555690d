"""The convolution and the mixing step against other implementations of them."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from speed import fallback

from gpu_sections.bench import HALF, Bench, Job, K, call, row

# Transform size -> ms, forward, gated, fp16, 64 x 768, one H100: the table in flash-fft-conv's README (commit b877102).
# It does not pad: a causal convolution of L positions is its transform of 2L.
FLASH_FFT_CONV = {1: 0.29, 4: 1.43, 8: 3.58, 16: 12.2, 32: 26.3, 1024: 1768.9, 2048: 4623.5, 4096: 10049.4}


def against_fallback(b: Bench) -> Iterator[Job]:
    """The gated convolution and the mixing step, by plain PyTorch (rfft of 2L points in float32) and by the kernels."""
    for length in b.lengths(*(K << i for i in range(11))):
        for op in ("gated_conv", "recurrence"):
            for training in (False, True):
                name = f"{op} {'forward+backward' if training else 'forward'} bf16 L={length}"
                yield name, partial(_against_fallback, b, op, training, length)


def _against_fallback(b: Bench, op: str, training: bool, length: int) -> dict[str, Any]:
    batch = b.batch(length, 1 << 19)
    spectrum, plain = b.spectra(length, b.width)
    kernel = call(b, op, batch, length, HALF, spectrum, training)
    slow = call(b, op, batch, length, HALF, plain(), training, fallback)
    times = b.times({"kernel": [kernel], "fallback": [slow]}, 10)
    bar = (6 if length <= 32 * K else 3) if op == "gated_conv" else None
    ms = {f"{name} ms": seconds * 1e3 for name, seconds in times.items()}
    return row(times["fallback"] / times["kernel"], "x faster than the fallback", bar, B=batch, **ms)


def flash_fft_conv(b: Bench) -> Iterator[Job]:
    """FlashFFTConv's published forward times, on one H100, over ours for the same causal problem."""
    for size, published in FLASH_FFT_CONV.items():
        length = size * K // 2 if not b.toy else 64
        for training in (False, True):
            name = f"{'forward+backward' if training else 'forward'} fp16 64x768 L={length}"
            yield name, partial(_flash_fft_conv, b, length, training, published)
        if b.toy:
            break


def _flash_fft_conv(b: Bench, length: int, training: bool, published: float) -> dict[str, Any]:
    rows = 2 if b.toy else 64
    # As many rows at once (a power of 2) as leave room for gradients: up to 4 GiB for each tensor.
    batch = min(rows, 1 << max(0, ((1 << 31) // (length * b.width)).bit_length() - 1))
    spectrum, _ = b.spectra(length, b.width)
    ours = b.time([call(b, "gated_conv", batch, length, torch.float16, spectrum, training)], 10) * rows / batch * 1e3
    detail = {"B": batch, "times": rows / batch, "ms": ours}
    if training:
        return row(None, "x faster (no backward is published)", **detail)
    return row(published / ours, "x faster than published", 2.0, **detail, **{"published ms": published})
