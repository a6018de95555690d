"""The shapes of beside_cudnn.py, each measured and printed as a line of JSON."""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from cudnn_library import Cudnn
from measure import queued
from torch import Tensor

from hyena import ops

H = torch.ops.hyena
K = 1024
# Length and taps, what matters most first.
SHAPES = [(4 * K, 4 * K), (1 * K, 1 * K), (2 * K, 2 * K), (8 * K, 8 * K), (16 * K, 16 * K), (4 * K, 128), (16 * K, 128)]
SHAPES += [(512, 512), (4 * K, 512), (16 * K, 512), (32 * K, 32 * K), (128 * K, 128 * K)]
LOUD = 1e4


class DeviceFailedError(Exception):
    """After which nothing works in this process."""


class Shape:
    """One shape's inputs and its row, each cell of which is measured on its own: one that fails leaves the others.

    The spectra of gated_conv's filters are made beforehand; cuDNN's calls make their own, once for all rows.
    """

    def __init__(self, length: int, taps: int, device: str) -> None:
        self.device, self.toy, self.length, self.taps = device, device == "cpu", length, taps
        batch, channels = (2, 8) if self.toy else (max(1, min(64, (1 << 20) // length)), 768)
        self.row: dict[str, Any] = {"L": length, "taps": taps, "B": batch, "C": channels}
        sizes = (batch, channels, length)
        self.x, self.pre, self.post, self.dy = (
            torch.randn(sizes, device=device, dtype=torch.bfloat16) for _ in range(4)
        )
        self.h = torch.randn(channels, taps, device=device) / math.sqrt(taps)
        self.loud = self.x[:1].clone()
        self.loud[..., length // 2 :] *= LOUD

    def cell(self, name: str, measure: Callable[[], Any]) -> Any:
        """Measures, and records what came of it."""
        try:
            self.row[name] = measure()
        except Exception as error:
            self.row[name] = f"{type(error).__name__}: {error}"[:300]
            if "CUDA error" in str(error):
                raise DeviceFailedError from error
        return self.row[name]

    def ms(self, run: Callable[[], object]) -> float:
        return queued({"it": [run]}, repeats=2 if self.toy else 9, device=self.device)["it"] * 1e3

    def error(self, y: Tensor, filters: Tensor, until: int) -> float:
        """Of eight channels of the first row, against float64."""
        size, until = 2 * self.length, min(until, self.length)
        spectrum = torch.fft.rfft(self.x[:1, :8].double(), size) * torch.fft.rfft(filters[:8].double(), size)
        want = torch.fft.irfft(spectrum, size)[..., :until]
        return ((y[:1, :8, :until].double() - want).norm() / want.norm()).item()

    def compare(self, name: str, call: Callable[[Tensor], Tensor], filters: Tensor) -> None:
        """The error, and what a loud future adds to the past's, without gates."""
        half = self.length // 2
        self.cell(f"{name} error", lambda: self.error(call(self.x[:1]), filters, self.length))
        self.cell(f"{name} error of the past, loud future", lambda: self.error(call(self.loud), filters, half))
        changed = lambda: (call(self.loud) != call(self.x[:1]))[..., :half].float().mean().item()  # noqa: E731
        self.cell(f"{name} share of the past that changes", changed)

    def cudnn(self, library: str) -> None:
        """CuDNN's, with the gates and their gradients as torch takes them."""
        cudnn, w, x, pre, post = Cudnn(Path(library)), self.h.to(torch.bfloat16), self.x, self.pre, self.post
        if self.toy:
            raise RuntimeError("nothing to run it on")
        began = time.perf_counter()
        y, kept = cudnn.forward(pre * x, w)
        torch.cuda.synchronize()
        self.row["cudnn first call s"] = round(time.perf_counter() - began, 2)

        def backward() -> tuple[Tensor, ...]:
            dx, dw = cudnn.backward(self.dy * post, kept)
            return dx * pre, dx * x, self.dy * y, dw

        self.cell("cudnn ms", lambda: self.ms(lambda: cudnn.forward(x, w)))
        self.cell("cudnn with gates ms", lambda: self.ms(lambda: post * cudnn.forward(pre * x, w)[0]))
        self.cell("cudnn backward ms", lambda: self.ms(lambda: cudnn.backward(self.dy, kept)))
        self.cell("cudnn backward with gates ms", lambda: self.ms(backward))
        self.compare("cudnn", lambda v: cudnn.forward(v, w)[0], w)

    def gated_conv(self) -> None:
        """Ours by transforms."""
        x, pre, post, dy = (t.transpose(1, 2) for t in (self.x, self.pre, self.post, self.dy))
        spectrum = ops.filter_spectrum(self.h.t()[None], ops.transform_length(self.length))[0]
        arguments, bare = (x, spectrum, None, pre, post, None, False), (spectrum, *[None] * 4, False)
        self.cell("gated_conv ms", lambda: self.ms(lambda: H.gated_conv(x, *bare)))
        self.cell("gated_conv with gates ms", lambda: self.ms(lambda: H.gated_conv(*arguments)))
        self.cell("gated_conv backward with gates ms", lambda: self.ms(lambda: H.gated_conv_backward(dy, *arguments)))
        self.compare("gated_conv", lambda v: H.gated_conv(v.transpose(1, 2), *bare).transpose(1, 2), self.h)

    def direct_conv(self) -> None:
        """Ours tap by tap, where there is a kernel and not too many taps."""
        if not ops.has_kernel("direct_conv", torch.device(self.device)) or self.taps > 4 * K:
            self.row["direct_conv"] = "no kernel"
            return
        x, pre, post, dy = (t.transpose(1, 2) for t in (self.x, self.pre, self.post, self.dy))
        h = self.h.t().contiguous()
        arguments, bare = (x, h, None, pre, post, None, True), (h, None, None, None, None, True)
        self.cell("direct_conv with gates ms", lambda: self.ms(lambda: H.direct_conv(*arguments)))
        self.cell("direct_conv backward with gates ms", lambda: self.ms(lambda: H.direct_conv_backward(dy, *arguments)))
        self.compare("direct_conv", lambda v: H.direct_conv(v.transpose(1, 2), *bare).transpose(1, 2), self.h)

    def measure(self, library: str) -> bool:
        """Fills the row; False where the device failed."""
        for what, part in (
            ("gated_conv", self.gated_conv),
            ("direct_conv", self.direct_conv),
            ("cudnn", lambda: self.cudnn(library)),
        ):
            try:
                part()
            except Exception as error:
                self.row[what] = f"{type(error).__name__}: {error}"[:300]
                if isinstance(error, DeviceFailedError) or "CUDA error" in str(error):
                    return False
        return True


def main() -> None:
    """Measures shapes from the number that is asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("library")
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--dry-run", action="store_true")
    args = parser.parse_args()
    shapes = [(64, 64), (64, 16)] if args.dry_run else SHAPES
    for number, (length, taps) in enumerate(shapes):
        if number < args.first:
            continue
        print(json.dumps({"trying": number}), flush=True)
        with torch.no_grad():
            shape = Shape(length, taps, "cpu" if args.dry_run else "cuda")
            healthy = shape.measure(args.library)
        print(json.dumps(shape.row), flush=True)
        if not healthy:
            sys.exit(3)
        del shape
        if not args.dry_run:
            torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
