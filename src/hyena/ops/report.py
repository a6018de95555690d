"""Which implementation every op has on this machine, and why."""

from __future__ import annotations

from pathlib import Path

import torch

from hyena.ops._extension import EXTENSION
from hyena.ops._library import OP_NAMES, has_kernel


def backend_report() -> str:
    """Which implementation every op has on this machine, and why.

    Returns:
        A table to print with a line for each op that has its tier on the CPU and on CUDA.
    """
    width = max(len(name) for name in OP_NAMES) + 2
    lines = [
        f"hyena on torch {torch.__version__}, {torch.get_num_threads()} CPU threads, "
        f"CUDA {'available' if torch.cuda.is_available() else 'not available'}",
        f"extension: {EXTENSION.reason}",
        f"CUDA kernels: {_cuda_kernels()}",
        f"{'op':{width}}{'CPU':12}{'CUDA':12}",
    ]
    for name in OP_NAMES:
        tiers = [_tier(name, torch.device(kind)) for kind in ("cpu", "cuda")]
        lines.append(f"{name:{width}}{tiers[0]:12}{tiers[1]:12}")
    return "\n".join(lines)


def library_file() -> Path | None:
    """The shared library with the compiled kernels, None where it is not in use."""
    return EXTENSION.file


def op_names() -> tuple[str, ...]:
    """The name of every op that kernels may implement, without the namespace."""
    return tuple(OP_NAMES)


def _tier(name: str, device: torch.device) -> str:
    return "kernel" if has_kernel(name, device, torch.float32) else "fallback"


def _cuda_kernels() -> str:
    if EXTENSION.instructions is None:
        return "none, because the extension is not in use"
    if not EXTENSION.has_cuda:
        return "not built: nvcc, or a torch with CUDA, was missing when hyena was installed"
    if not torch.cuda.is_available():
        return "built, but torch sees no GPU"
    major, minor = torch.cuda.get_device_capability()
    if not EXTENSION.takes(torch.device("cuda", torch.cuda.current_device()), torch.float32):
        return f"this build has no code for the GPU's compute capability {major}.{minor}"
    return f"in use for float32, bfloat16 and float16 (compute capability {major}.{minor}); float64 takes the fallback"
