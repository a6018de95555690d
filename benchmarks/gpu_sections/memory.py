"""Peak memory of training steps, with the kernels and without them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from measure import peak_bytes

from gpu_sections.bench import FULL, HALF, NAMES, Bench, Job, K, call, row
from hyena import HyenaOperator


def memory(b: Bench) -> Iterator[Job]:
    """Peak memory beyond inputs and weights, kernels over fallback, each in a process that has done nothing else."""
    found: dict[str, dict[str, int]] = {}
    for what in _steps(b):
        yield f"training step {what}", partial(_peak_ratio, b, what, found)


def _steps(b: Bench) -> dict[str, Callable[[], Callable[[], object]]]:
    """Makers of training steps, by name."""
    steps: dict[str, Callable[[], Callable[[], object]]] = {}
    for length in b.lengths(2 * K, 16 * K, 128 * K):
        batch = b.batch(length, 1 << 17)
        for dtype in (HALF, FULL):
            for name, make in (("recurrence", _mixing), ("operator", _operating)):
                steps[f"{name} {NAMES[dtype]} {batch}x{length}"] = partial(make, b, batch, length, dtype)
    return steps


def _mixing(b: Bench, batch: int, length: int, dtype: torch.dtype) -> Callable[[], object]:
    return call(b, "recurrence", batch, length, dtype, b.spectra(length, b.width)[0], training=True)


def _operating(b: Bench, batch: int, length: int, dtype: torch.dtype) -> Callable[[], object]:
    layer = HyenaOperator(b.width, length, device=b.device, dtype=dtype)
    u = torch.randn(batch, length, b.width, device=b.device, dtype=dtype, requires_grad=True)
    dy = torch.randn_like(u)

    def run() -> None:
        with torch.enable_grad():
            layer(u).backward(dy)
        layer.zero_grad()
        u.grad = None

    return run


def _peak_ratio(b: Bench, what: str, found: dict[str, dict[str, int]]) -> dict[str, Any]:
    for tier, disabled in (("kernel", "0"), ("fallback", "1")) if not found else ():
        command = f"from gpu_sections.memory import print_peaks; print_peaks({b.device!r})"
        done = subprocess.run(
            [sys.executable, "-c", command],
            cwd=Path(__file__).resolve().parent.parent,
            env=os.environ | {"HYENA_DISABLE_EXT": disabled},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        if done.returncode != 0:
            found.clear()
            raise RuntimeError(f"the {tier}'s process failed: {done.stderr[-500:]}")
        found[tier] = json.loads(done.stdout.splitlines()[-1])
    kernel, plain = found["kernel"][what], found["fallback"][what]
    detail = {"kernel MB": kernel / 1e6, "fallback MB": plain / 1e6}
    return row(kernel / plain if plain else None, "of the fallback's peak", 0.25, lower=True, **detail)


def print_peaks(device: str) -> None:
    """Prints the bytes that each of the steps takes in this process, after a first one."""
    b, peaks = Bench(device), {}
    for what, make in _steps(b).items():
        with torch.no_grad():
            run = make()
            run()
            peaks[what] = peak_bytes(run, device) or 0
        del run
        if not b.toy:
            torch.cuda.empty_cache()
    print(json.dumps(peaks))
