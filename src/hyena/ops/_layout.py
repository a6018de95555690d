"""Memory order, dtypes and transform lengths: the rules that the fallback, the fakes and the kernels share."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor


def compute_dtype(x: Tensor) -> torch.dtype:
    """The dtype of the arithmetic inside an op: float64 for float64, float32 for everything below it."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


# Channels that lie next to each other in a sequence in channel blocks, (B, C / 16, L, 16): what the CPU's kernels read
# fastest, who take a block's channels through the whole row at once (kChannelBlock in csrc/tensors.h).
CHANNEL_BLOCK = 16


def is_blocked(z: Tensor) -> bool:
    """Whether a sequence is in channel blocks, ``(B, C / 16, L, 16)``, and not ``(B, L, C)``."""
    return z.dim() == 4


def length_of(z: Tensor) -> int:
    """Positions of ``(B, L, C)`` or ``(B, C / 16, L, 16)``."""
    return z.size(2) if is_blocked(z) else z.size(1)


def channels_of(z: Tensor) -> int:
    """Channels of ``(B, L, C)`` or ``(B, C / 16, L, 16)``."""
    return z.size(1) * z.size(3) if is_blocked(z) else z.size(2)


def to_blocks(x: Tensor) -> Tensor:
    """``(B, L, C) -> (B, C / 16, L, 16)``, a view."""
    return x.unflatten(2, (x.size(2) // CHANNEL_BLOCK, CHANNEL_BLOCK)).transpose(1, 2)


def from_blocks(z: Tensor) -> Tensor:
    """``(B, C / 16, L, 16) -> (B, L, C)``; what is ``(B, L, C)`` stays as it is."""
    return z.transpose(1, 2).flatten(2) if is_blocked(z) else z


def dense_rows(x: Tensor) -> Tensor:
    """``x`` for a matrix product on its left; a copy of bfloat16 on a CPU whose rows have something between them.

    On processors with AMX torch's products read past the ends of such rows if their length is odd, among others: zero
    times what lies there, which is NaN if that is NaN or infinite.
    """
    return x.contiguous() if x.dtype == torch.bfloat16 and x.device.type == "cpu" else x


def is_channel_major(z: Tensor) -> bool:
    """Whether ``z`` of shape ``(B, L, C)`` lies in memory as ``(B, C, L)``, the natural order of a GPU."""
    return z.dim() == 3 and z.size(1) > 1 and z.size(2) > 1 and z.stride(1) == 1 and z.stride(2) != 1


# Positions of a row in (B, C, L) memory are followed by unused ones up to a multiple of this many, so that every row
# begins where kernels and matrix products can read several values at once (kRowStep in csrc/tensors.h).
_ROW_STEP = 8


def new_channel_major(like: Tensor, batch: int, length: int, channels: int) -> Tensor:
    """An uninitialised ``(B, L, C)`` tensor that lies in memory as ``(B, C, L)``, rows aligned."""
    room = (length + _ROW_STEP - 1) // _ROW_STEP * _ROW_STEP
    return like.new_empty(batch, channels, room)[..., :length].transpose(1, 2)


def shape_like(z: Tensor, channels: int) -> tuple[int, ...]:
    """The shape of a sequence of so many channels in the order of ``z``."""
    if is_blocked(z):
        return z.size(0), channels // CHANNEL_BLOCK, z.size(2), CHANNEL_BLOCK
    return z.size(0), z.size(1), channels


def empty_in_order_of(z: Tensor, channels: int) -> Tensor:
    """An uninitialised sequence of so many channels in the order (and dtype, device) of ``z``."""
    if is_channel_major(z):
        return new_channel_major(z, z.size(0), z.size(1), channels)
    return z.new_empty(shape_like(z, channels))


def to_order_of(y: Tensor, z: Tensor) -> Tensor:
    """``y`` of shape ``(B, L, C)`` in the dtype and order of ``z``."""
    y = y.to(z.dtype)
    if is_blocked(z):
        return to_blocks(y).contiguous()
    if not is_channel_major(z):
        return y.contiguous()
    if y.size(1) % _ROW_STEP == 0:
        return y.transpose(1, 2).contiguous().transpose(1, 2)
    return new_channel_major(y, *y.shape).copy_(y)


def empty_result(z: Tensor, channels: int, *weights: Tensor | None) -> Tensor:
    """The result of an op for an input without entries, in its order; gradients of everything are zero."""
    y = torch.zeros_like(empty_in_order_of(z, channels))
    for t in (z, *weights):
        if t is not None:
            y = y + 0 * t.sum()
    return y.to(z.dtype)


def _is_fast(size: int) -> bool:
    # Above 64 points a multiple of 16, which keeps the radix-3 and radix-5 passes few; below, any smooth length is as
    # good.
    if size > 64 and size % 16 != 0:
        return False
    for factor in (2, 3, 5):
        while size % factor == 0:
            size //= factor
    return size == 1


def _next_fast(length: int) -> int:
    size = length if length <= 64 else -(-length // 16) * 16
    while not _is_fast(size):
        size += 1 if size < 64 else 16
    return size


_cached_next_fast = lru_cache(maxsize=4096)(_next_fast)


@lru_cache(maxsize=4096)
def points_of(size: int) -> int:
    """The transform length ``P`` of a spectrum with room for ``size`` points: the longest fast length that fits."""
    while not _is_fast(size):
        size -= 1 if size <= 64 or size % 16 == 0 else size % 16
    return size


def transform_length(length: int) -> int:
    """Room to ask of a spectrum for rows of up to ``length`` positions: the next ``2^a 3^b 5^c``, as far as known.

    ``P`` complex points hold a causal or two-sided convolution of ``P`` positions without wrap-around (a real transform
    of ``2P`` points in the fallback), so ``L = 8209`` costs 8640 points and not 16384.

    While ``torch.compile`` or ``torch.export`` traces with a symbolic length, the next fast length is not an expression
    that can be traced; the answer is then an upper bound on it (the gap above a fast length is at most an eighth and
    23), and the ops take the longest fast length inside: ``points_of(size)``.
    """
    if isinstance(length, int) and not torch.compiler.is_compiling():
        if length < 1:
            raise ValueError(f"a transform needs at least one position, got length={length}")
        return _cached_next_fast(length)
    # Imported here because it costs a third of a second, and only tracing needs it.
    from torch.fx.experimental.symbolic_shapes import has_static_value

    if has_static_value(length):
        return _next_fast(int(length))
    return length + length // 8 + 24
