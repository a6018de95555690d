"""What kernels say when they cannot do as they are told: no memory, results that overlap, sizes, instruction sets."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from hyena import ops
from hyena.ops._library import has_kernel

needs_kernels = pytest.mark.skipif(
    not has_kernel("add_conv_", torch.device("cpu")), reason="there are no CPU kernels here"
)

LIMITED = """
import resource, sys, torch
from hyena import ops

torch.set_num_threads(int(sys.argv[1]))
h = torch.ones(1, 3, int(sys.argv[2]))
ops.filter_spectrum(h, 64)
pages = int(open("/proc/self/statm").read().split()[0])
most = pages * resource.getpagesize() + int(sys.argv[4])
resource.setrlimit(resource.RLIMIT_AS, (most, most))
torch.ops.hyena.filter_spectrum(h, int(sys.argv[3]), True)
"""


def python(program: str, *arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", program, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment}, timeout=120)


@needs_kernels
@pytest.mark.skipif(sys.platform != "linux", reason="limits of memory are Linux's")
@pytest.mark.skipif("LD_PRELOAD" in os.environ, reason="sanitizers take more address space than any limit")
@pytest.mark.parametrize("threads", [1, 2])
def test_out_of_memory_says_how_much_was_asked_for(threads: int) -> None:
    run = python(LIMITED, threads, 1, 1 << 29, 1 << 30)
    assert f"could not make a tensor of {8 * ((1 << 29) + 1)} bytes" in run.stderr
    # A spectrum of 32 MiB, and a transform's buffer of 4 to 16 lanes for each of its points.
    run = python(LIMITED, threads, 2, 1 << 22, 100 << 20)
    assert "bytes of working memory" in run.stderr, run.stderr[-500:]
    assert "API call failed" not in run.stderr.splitlines()[-1]


@needs_kernels
def test_a_result_must_not_overlap_itself() -> None:
    v, spectrum = torch.randn(2, 8, 3), ops.filter_spectrum(torch.randn(1, 8, 3), 8)[0]
    memory = torch.zeros(2, 8, 4)
    add = torch.ops.hyena.add_conv_
    for y in (memory[:1, :, :3].expand(2, 8, 3), memory[..., :1].expand(2, 8, 3)):
        with pytest.raises(ValueError, match="share memory"):
            add(y, v, spectrum)
    overlapping = memory.as_strided((2, 8, 3), (16, 2, 1))
    with pytest.raises(ValueError, match="share memory"):
        add(overlapping, v, spectrum)
    assert memory.eq(0).all()
    for y in (memory[..., 1:], torch.zeros(2, 3, 8).transpose(1, 2), torch.zeros(8, 2, 3).transpose(0, 1)):
        add(y, v, spectrum)
        want = ops.gated_conv(v, spectrum)
        torch.testing.assert_close(y, want, rtol=1e-5, atol=1e-5)


def test_sizes_that_are_no_fast_length() -> None:
    """A spectrum of 100 points is one of 96: more taps raise, and the gradient of as many is right."""
    h = torch.randn(1, 97, 2, dtype=torch.float64)
    with pytest.raises((ValueError, RuntimeError), match="96"):
        torch.ops.hyena.filter_spectrum(h, 100, True)
    with pytest.raises((ValueError, RuntimeError), match="96"):
        torch.ops.hyena.filter_spectrum_backward(torch.zeros(1, 2, 101, 2, dtype=torch.float64), h, 100, True)
    h = h[:, :96].clone().requires_grad_()
    v, g = torch.randn(1, 90, 2, dtype=torch.float64), torch.randn(1, 90, 2, dtype=torch.float64)
    (got,) = torch.autograd.grad(ops.gated_conv(v, ops.filter_spectrum(h, 100)[0]), h, g)
    want = torch.zeros_like(got)
    for lag in range(90):
        want[0, lag] = (g[0, lag:] * v[0, : 90 - lag]).sum(0)
    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)
    for size in (0, -1, 1 << 40):
        with pytest.raises((ValueError, RuntimeError), match=r"size|allocate"):
            torch.ops.hyena.filter_spectrum(h.detach(), size, True)


@needs_kernels
@pytest.mark.parametrize("value", ["", "avx51", "AVX2"])
def test_an_instruction_set_that_there_is_not(value: str) -> None:
    run = python("import hyena", HYENA_CPU=value)
    assert f"RuntimeWarning: HYENA_CPU={value!r} is none of baseline, avx2, avx512: the kernels for" in run.stderr
    assert "Warning" not in python("import hyena", HYENA_CPU="baseline").stderr
