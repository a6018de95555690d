"""``hyena report``: what a bug report has to say of the machine and what is installed on it."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import sys
from pathlib import Path
from typing import Any

import torch

import hyena

# Whose version can matter; those that are not installed are left out.
_PACKAGES = (
    "torch", "triton", "numpy", "transformers", "safetensors", "accelerate", "peft", "lightning", "torchao", "onnx",
    "onnxruntime", "einops", "opt_einsum",
)  # fmt: skip
_VARIABLES = ("HYENA_", "OMP_", "MKL_NUM_", "KMP_", "CUDA_VISIBLE_DEVICES", "TORCH_NUM_", "PYTORCH_")


def run(given: argparse.Namespace) -> None:
    """Prints the report."""
    found = report()
    if given.json:
        print(json.dumps(found, indent=2))
        return
    kernels = found.pop("kernels")
    for name, value in found.items():
        if isinstance(value, dict):
            value = ", ".join(f"{key} {each}" for key, each in value.items()) or "none"
        elif isinstance(value, list):
            value = "; ".join(value) or "none"
        print(f"{name:14}{value}")
    print()
    print("\n".join(kernels))


def report() -> dict[str, Any]:
    """What is known of this machine, without names of its user."""
    home = str(Path.home())
    kernels = [line.replace(home, "~") if len(home) > 1 else line for line in hyena.backend_report().splitlines()]
    return {
        "hyena": hyena.__version__,
        "python": f"{platform.python_version()} ({platform.python_implementation()})",
        "system": f"{platform.system()} {platform.machine()}, {_libc()}",
        "processor": _processor(),
        "cores": f"{_cores()} of {os.cpu_count()} usable",
        "memory": _memory(),
        "threads": f"{torch.get_num_threads()} in an operation, {torch.get_num_interop_threads()} between",
        "instructions": f"torch {torch.backends.cpu.get_cpu_capability()}",
        "devices": _devices(),
        "packages": _versions(),
        "environment": {k: v for k, v in sorted(os.environ.items()) if k.startswith(_VARIABLES)},
        "kernels": kernels,
    }


def _versions() -> dict[str, str]:
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _devices() -> list[str]:
    if not torch.cuda.is_available():
        return [f"no GPU that this torch sees (its CUDA: {torch.version.cuda or 'none'})"]
    found = []
    for i in range(torch.cuda.device_count()):
        has = torch.cuda.get_device_properties(i)
        memory = f"{has.total_memory / 2**30:.0f} GiB"
        found.append(f"cuda:{i} {has.name}, capability {has.major}.{has.minor}, {memory}, CUDA {torch.version.cuda}")
    return found


def _libc() -> str:
    name, version = platform.libc_ver()
    return f"{name} {version}" if name else platform.release()


def _processor() -> str:
    """The model's name, where the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor() or "unknown"
    named = [line.partition(":")[2].strip() for line in lines if line.startswith(("model name", "CPU part"))]
    return named[0] if named else platform.processor() or "unknown"


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def _memory() -> str:
    try:
        return f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB"
    except (AttributeError, ValueError, OSError):
        return "unknown"
