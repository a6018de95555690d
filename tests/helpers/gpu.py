"""What tests of a GPU share: the device's tiers, operands, comparisons with the fallback, and waiting."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor

from helpers import recurrence
from helpers.cases import Result, Tier, place, run
from helpers.tolerances import kernel_limit
from hyena import ops

DEVICE = "cuda"
GPU = Tier("cuda", DEVICE)
FALLBACK = Tier("fallback", DEVICE)
# About half a second of a GPU's clock.
A_WHILE = 1_000_000_000
# Rows of one block on every GPU, of one block on some, and of a split transform on all.
LENGTHS = [1000, 16384, 50000]


@contextmanager
def not_waiting() -> Iterator[None]:
    """Fails if the host waits for the device inside: torch's own waits raise, any other outlasts what is queued."""
    torch.cuda.synchronize()
    done = torch.cuda.Event()
    torch.cuda._sleep(A_WHILE)
    done.record()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert not done.query(), "the host waited for the device"
    torch.cuda.synchronize()


def enough_memory(gigabytes: float) -> None:
    """Skips where there is less."""
    torch.cuda.empty_cache()
    free = torch.cuda.mem_get_info()[0] / 2**30
    if free < gigabytes:
        pytest.skip(f"needs {gigabytes:g} GiB of device memory, {free:.1f} GiB are free")


def check(fn: Callable[..., Tensor], inputs: dict[str, Tensor | None], dy: Tensor, dtype: torch.dtype) -> None:
    """Output and gradients are about as wrong as the fallback's (``inputs`` float64, on the CPU).

    Sums of a few entries may be several times as wrong by bad luck (test_ops_tiers.py has the factor of two); a wrong
    plan, an address that overflowed or a race are wrong in the first digit.
    """
    wide = {"h": torch.promote_types(dtype, torch.float32)}
    exact = run(fn, place(inputs, GPU, torch.float64), dy.to(DEVICE, torch.float64))
    x, g = place(inputs, GPU, dtype, **wide), dy.to(DEVICE, dtype)
    got = run(fn, x, g)
    with FALLBACK():
        plain = run(fn, x, g)
    limits = {k: 4 * kernel_limit(e, got.dtypes()[k]) for k, e in errors(plain, exact).items()}
    wrong = {k: (e, limits[k]) for k, e in errors(got, exact).items() if not e <= limits[k]}
    assert not wrong, wrong


def errors(got: Result, want: Result) -> dict[str, float]:
    """Root mean square error of the output and of each gradient, as a share of its size."""
    pairs = {"output": (got.output, want.output)}
    pairs |= {"d " + name: (g, want.gradients[name]) for name, g in got.gradients.items()}
    return {
        k: ((a.double() - b).square().mean().sqrt() / b.square().mean().sqrt()).item() for k, (a, b) in pairs.items()
    }


def operands(length: int, batch: int = 2, channels: int = 6, dtype: torch.dtype = torch.float32) -> tuple[Tensor, ...]:
    """Arguments of ``recurrence``, z as ``(B, C, L)`` in memory: z, short weight, short bias, spectra, d."""
    x = place(recurrence.inputs(batch, length, channels), GPU, dtype, {"z": "channel_major"}, h=torch.float32)
    spectrum = ops.filter_spectrum(x["h"], ops.transform_length(length))
    return x["z"], x["weight"], x["bias"], spectrum, x["d"]


def both_ways(x: tuple[Tensor, ...], dy: Tensor) -> list[Tensor]:
    """The output of ``recurrence``, and the gradient of each argument."""
    leaves = [t.detach().requires_grad_() for t in x]
    y = ops.recurrence(*leaves)
    return [y.detach(), *torch.autograd.grad(y, leaves, dy)]


def same(got: list[Tensor], want: list[Tensor]) -> None:
    """The same bits."""
    for i, (a, b) in enumerate(zip(got, want, strict=True)):
        assert torch.equal(a, b), i


def in_a_process_of_its_own(code: str) -> subprocess.CompletedProcess[str]:
    """Runs Python with torch and hyena in it."""
    code = "import torch\nfrom hyena import ops\ntorch.manual_seed(0)\n" + code
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=90, check=False)
