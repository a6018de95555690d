"""The compiled kernels: loading them, and which devices and dtypes they take."""

from __future__ import annotations

import ctypes
import os
import sys
import warnings
from collections.abc import Callable
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


class Extension:
    """The compiled extension.

    Attributes:
        instructions: its instruction set on the CPU ("emulated CUDA" for CUDA's kernels compiled for the host); None
            where it is not in use.
        reason: why it is or is not in use, for :func:`hyena.backend_report`.
        has_cuda: whether it was built with CUDA kernels.
        fast_linear: whether ``hyena::project_backward`` is faster than torch's matrix products on this CPU.
    """

    def __init__(self) -> None:
        self.instructions: str | None = None
        self.reason = "not loaded"
        self.fast_linear = False
        self._cuda_takes: Callable[[int, int], int] | None = None

    @property
    def has_cuda(self) -> bool:
        return self._cuda_takes is not None

    def load(self) -> None:
        """Loads the library, which registers its kernels: once, when every op has its schema."""
        if os.environ.get("HYENA_DISABLE_EXT", "0") not in ("", "0"):
            self.reason = "HYENA_DISABLE_EXT is set"
            return
        file = _newest(_LIBRARY)
        if file is None:
            missing = _newest(_MISSING)
            self._go_without(
                f"there is no {_LIBRARY} in {' or '.join(map(str, _folders()))}: a source tree needs `pip install -e .`"
                if missing is None
                else missing.read_text(encoding="utf-8").strip()
            )
            return
        try:
            torch.ops.load_library(str(file))
        except OSError as error:
            self._go_without(f"{file} does not load with torch {torch.__version__}: {error}")
            return
        library = ctypes.CDLL(str(file))
        name = library.hyena_cpu_kernels
        name.restype = ctypes.c_char_p
        self.instructions = name().decode()
        self.reason = f"compiled kernels, {self.instructions} instructions"
        self._cuda_takes = getattr(library, "hyena_cuda_takes", None)  # only a build with the CUDA kernels has it
        fast_linear = getattr(library, "hyena_fast_linear", None)  # only a build with the CPU kernels
        self.fast_linear = fast_linear is not None and bool(fast_linear())

    def _go_without(self, why: str) -> None:
        warnings.warn(f"hyena runs without compiled kernels, several times slower: {why}", RuntimeWarning, stacklevel=2)
        self.reason = why

    def takes(self, device: torch.device, dtype: torch.dtype) -> bool:
        """Whether the kernels for this kind of device take tensors there of this dtype, or hand them to the fallback.

        The CPU's take everything. The GPU's need code for the device (8.0 and later, unless the build was narrowed) and
        take no float64.
        """
        if device.type == "cpu" and self.instructions != "emulated CUDA":
            return True
        if self._cuda_takes is None:
            return False
        if device == torch.device("cuda"):  # the current one, whichever that is
            if not torch.cuda.is_available():
                return False
            device = torch.device("cuda", torch.cuda.current_device())
        return bool(self._cuda_takes(device.index or 0, dtype == torch.float64))


EXTENSION = Extension()
