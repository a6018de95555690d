"""What made a number: commit, device, versions."""

from __future__ import annotations

import platform
import subprocess
from pathlib import Path
from typing import Any

import torch

import hyena

ROOT = Path(__file__).resolve().parents[2]


def git(*arguments: str) -> str:
    """What git answers about the repository, empty where it has no answer."""
    done = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=False)
    return done.stdout.strip()


def where(device: str = "cpu") -> dict[str, Any]:
    """What made a number: the commit, what was changed in it, the device and the versions."""
    return {
        "commit": git("rev-parse", "HEAD"),
        "package": git("rev-parse", "HEAD:src/hyena"),
        "changed": git("status", "--porcelain", "--untracked-files=no"),
        "device": torch.cuda.get_device_name(device) if device.startswith("cuda") else "cpu",
        "processor": processor(),
        "threads": torch.get_num_threads(),
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "hyena": hyena.__version__},
    }


def processor() -> str:
    """The name of the processor, as far as the system says."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()
