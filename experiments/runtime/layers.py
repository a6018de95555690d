"""What is timed: Hyena's operator and attention with the same projections, forward or a training step.

Dimensions: B batch, L length, D channels.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from hyena import HyenaOperator

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

from measure import interleaved, peak_bytes, queued  # noqa: E402
from speed import Attention  # noqa: E402

__all__ = ["BENCHMARKS", "call", "interleaved", "names", "peak_bytes", "queued"]


def names(device: str) -> list[str]:
    """The layers that a device is measured with; attention by flash kernels alone, and by what PyTorch takes itself."""
    return ["hyena", "attention"] if device == "cpu" else ["hyena", "flash", "default"]


def call(
    name: str, width: int, length: int, tokens: int, *, training: bool, device: str = "cpu"
) -> Callable[[], object]:
    """A call of a layer on rows of ``length``: ``tokens`` of them in a batch, or one longer row.

    Float32 on a CPU, bfloat16 on a GPU; heads of 64. Out of training, filters are cached from the first call on; a step
    of training is forward and backward, and generates them.
    """
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    layer: nn.Module
    if name == "hyena":
        layer = HyenaOperator(width, length, device=device, dtype=dtype)
    else:
        layer = Attention(width).to(device, dtype)
    layer.train(training)
    shape = (max(1, tokens // length), length, width)
    u = torch.randn(shape, device=device, dtype=dtype, requires_grad=training)
    dy = torch.randn(shape, device=device, dtype=dtype) if training else None

    def run() -> None:
        flash = sdpa_kernel(SDPBackend.FLASH_ATTENTION) if name == "flash" else contextlib.nullcontext()
        with torch.set_grad_enabled(training), flash:
            y = layer(u)
        if dy is not None:
            y.backward(dy)

    return run
