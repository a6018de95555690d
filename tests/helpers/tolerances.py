"""How wrong a result may be, and what its error is measured against.

Rounding errors of a transform are spread over the whole row, so an error is not compared with the entry it is found in
but with the tensor's size: the root of the sum of squared terms that its entries are made of. Hyena's operations and
their gradients are sums of products of their inputs, so the oracle's value for squared inputs is the square of that
size. It does not get small when terms cancel.
"""

from __future__ import annotations

import torch
from torch import Tensor

# Largest deviation as a share of the largest size. The arithmetic is float32 (float64 for float64), and an order-4
# recurrence and its backward run up to eight transforms in a row, each on the rounding errors of the last: the
# fallback was measured at up to 9 eps (22 for the gradient of the taps) over all tests here; three times that is
# allowed. Of a half-precision result it is what goes beyond the rounding of each entry at the end, which no arithmetic
# can avoid.
TOLERANCE = {
    torch.float64: 64 * torch.finfo(torch.float64).eps,
    torch.float32: 64 * torch.finfo(torch.float32).eps,
    torch.bfloat16: 2 * torch.finfo(torch.bfloat16).eps,
    torch.float16: 2 * torch.finfo(torch.float16).eps,
}


def error(got: Tensor, want: Tensor, square: Tensor) -> float:
    """Largest deviation of ``got`` from ``want`` as a share of the largest size, whose ``square`` is given.

    A half-precision entry may be off by half a unit of its last place besides: one that is many times the size, since
    its terms have one sign, is rounded as coarsely as it is large.
    """
    assert got.shape == want.shape, (got.shape, want.shape)
    if got.numel() == 0:
        return 0.0
    scale = square.max().sqrt().item()
    deviation = (got.detach().double().cpu() - want).abs()
    if got.dtype.itemsize < torch.float32.itemsize:
        deviation = (deviation - torch.finfo(got.dtype).eps / 2 * want.abs()).clamp_min(0)
    worst = deviation.max().item()
    return worst / scale if scale > 0 else worst


def kernel_limit(fallback: float, dtype: torch.dtype) -> float:
    """What :func:`mean_error` of a kernel may be: twice the fallback's, and an eps where that is all but exact.

    The error of an average entry is compared, because the largest one is a matter of luck where errors are a few eps.
    """
    return 2 * fallback + torch.finfo(dtype).eps


def mean_error(got: Tensor, want: Tensor, square: Tensor) -> float:
    """Root mean square deviation as a share of the root mean size."""
    if got.numel() == 0:
        return 0.0
    scale = square.mean().sqrt().item()
    deviation = (got.detach().double().cpu() - want).square().mean().sqrt().item()
    return deviation / scale if scale > 0 else deviation
