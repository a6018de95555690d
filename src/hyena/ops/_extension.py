"""The compiled kernels: loading them, and which devices and dtypes they take."""

from __future__ import annotations

import ctypes
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import torch

_FOLDER = Path(__file__).resolve().parent.parent
_LIBRARY = "_kernels.so"
_MISSING = "_kernels_missing.txt"  # written by the build where it could not make the library


class Extension:
    """The compiled extension.

    Attributes:
        instructions: its instruction set on the CPU ("emulated CUDA" for CUDA's kernels compiled for the host); None
            where it is not in use.
        reason: why it is or is not in use, for :func:`hyena.backend_report`.
        has_cuda: whether it was built with CUDA kernels.
        file: where the library is; None where it is not in use.
        library: the library itself, for its functions that are no ops; None where it is not in use.
        fast_rows: rows from which on the library's matrix products are faster than torch's on this CPU; 0 if never
            (csrc/cpu/kernels/dispatch.cpp).
    """

    def __init__(self) -> None:
        self.instructions: str | None = None
        self.reason = "not loaded"
        self.file: Path | None = None
        self.library: ctypes.CDLL | None = None
        self.fast_rows = 0
        self._cuda_takes: Callable[[int, int], int] | None = None
        self._cuda_has_plan: Callable[[int, ctypes.c_int64], int] | None = None

    @property
    def has_cuda(self) -> bool:
        return self._cuda_takes is not None

    def load(self) -> None:
        """Loads the library, which registers its kernels: once, when every op has its schema."""
        if os.environ.get("HYENA_DISABLE_EXT", "0") not in ("", "0"):
            self.reason = "HYENA_DISABLE_EXT is set"
            return
        file, missing = _FOLDER / _LIBRARY, _FOLDER / _MISSING
        if not file.exists():
            self._go_without(missing.read_text(encoding="utf-8").strip() if missing.exists() else _without_library())
            return
        try:
            torch.ops.load_library(str(file))
        except OSError as error:
            self._go_without(f"{file} does not load with torch {torch.__version__}: {error}")
            return
        self.file = file
        self.library = library = ctypes.CDLL(str(file))
        name = library.hyena_cpu_kernels
        name.restype = ctypes.c_char_p
        self.instructions = name().decode()
        self.reason = f"compiled kernels, {self.instructions} instructions"
        self._cuda_takes = getattr(library, "hyena_cuda_takes", None)  # only a build with the CUDA kernels has it
        self._cuda_has_plan = getattr(library, "hyena_cuda_has_plan", None)
        fast_rows = getattr(library, "hyena_fast_linear_rows", None)  # only a build with the CPU kernels
        self.fast_rows = 0 if fast_rows is None else int(fast_rows())

    def _go_without(self, why: str) -> None:
        warnings.warn(f"hyena runs without compiled kernels, several times slower: {why}", RuntimeWarning, stacklevel=2)
        self.reason = why

    def multiplies(self, u: torch.Tensor) -> bool:
        """Whether the library's matrix products are for tensors like ``u``, if they have ``fast_rows`` rows."""
        return self.fast_rows > 0 and u.device.type == "cpu" and u.dtype in (torch.float32, torch.float64)

    def takes(self, device: torch.device, dtype: torch.dtype, points: int = 1) -> bool:
        """Whether the kernels for this kind of device take tensors there of this dtype, or hand them to the fallback.

        The CPU's take everything. The GPU's need code for the device (8.0 and later, unless the build was narrowed) and
        take no float64, nor transforms of more than some ten millions of ``points``.
        """
        if device.type == "cpu" and self.instructions != "emulated CUDA":
            return True
        if self._cuda_takes is None:
            return False
        if device == torch.device("cuda"):  # the current one, whichever that is
            if not torch.cuda.is_available():
                return False
            device = torch.device("cuda", torch.cuda.current_device())
        index = device.index or 0
        if not self._cuda_takes(index, dtype == torch.float64):
            return False
        return self._cuda_has_plan is None or bool(self._cuda_has_plan(index, ctypes.c_int64(points)))


def _without_library() -> str:
    """Why there is no library, where the build left no reason: wheels without kernels have none, nor their sources."""
    if (_FOLDER / "csrc").is_dir():
        return f"there is no {_LIBRARY} in {_FOLDER}: a source tree needs `pip install -e .`"
    return f"this is the wheel without kernels, for systems that they are not written for (here: {sys.platform})"


EXTENSION = Extension()
