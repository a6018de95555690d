"""Loads the compiled kernels, and says which implementation each op has here."""

from __future__ import annotations

import ctypes
import os
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

_LIBRARY = "_kernels.so"
_MISSING = "_kernels_missing.txt"  # written by the build where it could not make the library


def _folders() -> list[Path]:
    """The package's folders. An editable install has two: the source tree, and what was built for it."""
    return [Path(folder) for folder in sys.modules[__name__.partition(".")[0]].__path__]


def _newest(name: str) -> Path | None:
    """The file of this name in the package's folders; if there are two, the one that was built last."""
    found = [folder / name for folder in _folders() if (folder / name).exists()]
    return max(found, key=lambda file: file.stat().st_mtime, default=None)


@dataclass(frozen=True)
class Extension:
    """The compiled extension: its instruction set on the CPU, or why it is not in use."""

    instructions: str | None
    reason: str
    cuda_takes: Callable[[int, int], int] | None = None
    fast_linear: bool = False  # whether hyena::project_backward is faster than torch's matrix products on this CPU

    def takes(self, device: torch.device, dtype: torch.dtype) -> bool:
        """Whether the kernels for this kind of device take tensors there of this dtype, or hand them to the fallback.

        The CPU's take everything. The GPU's want code for the device (8.0 and later, unless the build was narrowed) and
        no float64.
        """
        if device.type == "cpu" and self.instructions != "emulated CUDA":
            return True
        if self.cuda_takes is None:
            return False
        if device == torch.device("cuda"):  # the current one, whichever that is
            if not torch.cuda.is_available():
                return False
            device = torch.device("cuda", torch.cuda.current_device())
        return bool(self.cuda_takes(device.index or 0, dtype == torch.float64))


def _load() -> Extension:
    if os.environ.get("HYENA_DISABLE_EXT", "0") not in ("", "0"):
        return Extension(None, "HYENA_DISABLE_EXT is set")
    file = _newest(_LIBRARY)
    if file is None:
        missing = _newest(_MISSING)
        return _without_kernels(
            f"there is no {_LIBRARY} in {' or '.join(map(str, _folders()))}: a source tree needs `pip install -e .`"
            if missing is None
            else missing.read_text(encoding="utf-8").strip()
        )
    try:
        torch.ops.load_library(str(file))
    except OSError as error:
        return _without_kernels(f"{file} does not load with torch {torch.__version__}: {error}")
    library = ctypes.CDLL(str(file))
    name = library.hyena_cpu_kernels
    name.restype = ctypes.c_char_p
    # Only a build with the CUDA kernels has it.
    cuda_takes = getattr(library, "hyena_cuda_takes", None)
    fast_linear = getattr(library, "hyena_fast_linear", None)  # only a build with the CPU kernels
    fast = fast_linear is not None and bool(fast_linear())
    return Extension(name().decode(), f"compiled kernels, {name().decode()} instructions", cuda_takes, fast)


def _without_kernels(why: str) -> Extension:
    warnings.warn(f"hyena runs without compiled kernels, several times slower: {why}", RuntimeWarning, stacklevel=2)
    return Extension(None, why)


EXTENSION = _load()


def backend_report() -> str:
    """Which implementation every op has on this machine, and why.

    Returns:
        A table to print: one line for each op, with its tier on the CPU and on CUDA.
    """
    from hyena.ops._library import OP_NAMES, has_kernel

    lines = [
        f"hyena on torch {torch.__version__}, {torch.get_num_threads()} CPU threads, "
        f"CUDA {'available' if torch.cuda.is_available() else 'not available'}",
        f"extension: {EXTENSION.reason}",
        f"CUDA kernels: {_cuda_kernels()}",
        f"{'op':28}{'CPU':12}{'CUDA':12}",
    ]
    for name in OP_NAMES:
        tiers = ["kernel" if has_kernel(name, torch.device(kind)) else "fallback" for kind in ("cpu", "cuda")]
        lines.append(f"{name:28}{tiers[0]:12}{tiers[1]:12}")
    return "\n".join(lines)


def _cuda_kernels() -> str:
    if EXTENSION.instructions is None:
        return "none, for want of the extension"
    if EXTENSION.cuda_takes is None:
        return "not built, for want of nvcc or of a torch with CUDA when hyena was installed"
    if not torch.cuda.is_available():
        return "built, but torch sees no GPU"
    major, minor = torch.cuda.get_device_capability()
    if not EXTENSION.takes(torch.device("cuda", torch.cuda.current_device()), torch.float32):
        return f"this build has no code for the GPU's compute capability {major}.{minor}"
    return f"in use for float32, bfloat16 and float16 (compute capability {major}.{minor}); float64 takes the fallback"
