"""cuDNN's causal convolutions through transforms, called by ctypes: libcudnn_ext.so.9 of cuDNN 9.26 or later.

The C functions of ``cudnn_subquadratic_ops.h``; the library needs none of cuDNN's others. It compiles a kernel for
each shape at its first call (NVRTC, with the toolkit's headers). Tensors are ``(B, C, L)`` and filters ``(C, K)``, of
one dtype.
"""

from __future__ import annotations

import ctypes
import os
import shutil
from ctypes import c_int, c_size_t, c_void_p
from pathlib import Path

import torch
from torch import Tensor

TYPES = {torch.float32: 0, torch.float16: 2, torch.bfloat16: 9}
MEDIUM = 16384  # the longest filter of the functions that need no memory of the caller's


class Cudnn:
    """The library at a path."""

    def __init__(self, path: Path) -> None:
        prepare_compiler()
        self.library = ctypes.CDLL(str(path))

    def forward(self, x: Tensor, w: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The convolution, and what a backward needs of it."""
        y, k = torch.empty_like(x), w.size(1)
        if k <= MEDIUM:
            self._call("cudnnFFTCausalConv1dForward", _stream(), _at(x), _at(w), _at(y), *_sizes(x, k))
            return y, (x, w)
        work, reserve = self._memory(x, k)
        where = (_at(work), c_size_t(work.numel()), _at(reserve), c_size_t(reserve.numel()))
        self._call("cudnnLongFFTCausalConv1dForward", _stream(), _at(x), _at(w), _at(y), *_sizes(x, k), *where)
        return y, (x, w, work, reserve)

    def backward(self, dy: Tensor, kept: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        """Gradients of the input and of the filter."""
        x, w, *memory = kept
        dx, dw, k = torch.empty_like(x), torch.empty_like(w), w.size(1)
        if not memory:
            tensors = [_at(t) for t in (x, w, dy, dx, dw)]
            self._call("cudnnFFTCausalConv1dBackward", _stream(), *tensors, *_sizes(x, k))
            return dx, dw
        where = [argument for t in memory for argument in (_at(t), c_size_t(t.numel()))]
        tensors = [_at(t) for t in (dy, dx, dw)]
        self._call("cudnnLongFFTCausalConv1dBackward", _stream(), *tensors, *_sizes(x, k), *where)
        return dx, dw

    def _memory(self, x: Tensor, k: int) -> list[Tensor]:
        sizes = (c_size_t(), c_size_t())
        found = [ctypes.byref(size) for size in sizes]
        self._call("cudnnLongFFTCausalConv1dGetBufferSizes", *_sizes(x, k), *found)
        return [torch.empty(max(16, size.value), dtype=torch.uint8, device=x.device) for size in sizes]

    def _call(self, name: str, *arguments: object) -> None:
        status = getattr(self.library, name)(*arguments)
        if status != 0:
            raise RuntimeError(f"{name}: status {status}")


def _at(x: Tensor) -> c_void_p:
    assert x.is_contiguous()
    return c_void_p(x.data_ptr())


def _sizes(x: Tensor, k: int) -> tuple[c_int, ...]:
    return (*map(c_int, x.shape), c_int(k), c_int(TYPES[x.dtype]))


def _stream() -> c_void_p:
    return c_void_p(torch.cuda.current_stream().cuda_stream)


def prepare_compiler() -> None:
    """Lets the library find the CUDA toolkit's headers, and NVRTC where it comes with torch."""
    nvcc = shutil.which("nvcc")
    homes = [Path("/usr/local/cuda"), *([Path(nvcc).resolve().parents[1]] if nvcc else [])]
    for home in homes:
        if (home / "include" / "cuda_fp16.h").exists():
            os.environ.setdefault("CUDA_HOME", str(home))
    beside = Path(torch.__file__).resolve().parents[1] / "nvidia"
    places = [*(home / "lib64" for home in homes), *beside.glob("*/lib")]
    for pattern in ("libnvrtc-builtins.so.*", "libnvrtc.so.*"):
        for file in (file for place in places for file in sorted(place.glob(pattern))):
            try:
                ctypes.CDLL(str(file), mode=ctypes.RTLD_GLOBAL)
            except OSError:
                continue
            break
