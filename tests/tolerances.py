"""How wrong a result may be, and what its error is measured against.

Rounding errors of a transform are spread over the whole row, so an error is not compared with the entry it is found in
but with the tensor's size: the largest root of the sum of squared terms that its entries are made of. Hyena's operations
and their gradients are sums of products of their inputs, so that size is the oracle's value for squared inputs. Unlike
the value itself it does not get small when terms cancel.
"""

from __future__ import annotations

import torch
from torch import Tensor

# Share of a tensor's size. The arithmetic is float32 (float64 for float64); a transform of P points adds some
# eps * log2(P) to it, and an order-4 recurrence and its backward run up to eight transforms one after the other, each on
# the rounding errors of the last: measured up to 20 eps in the worst case here, and given 64. A half-precision result is
# rounded once at its end, by half an eps of an entry that may be some times the size: 4 eps.
TOLERANCE = {
    torch.float64: 64 * torch.finfo(torch.float64).eps,
    torch.float32: 64 * torch.finfo(torch.float32).eps,
    torch.bfloat16: 4 * torch.finfo(torch.bfloat16).eps,
    torch.float16: 4 * torch.finfo(torch.float16).eps,
}


def error(got: Tensor, want: Tensor, size: Tensor) -> float:
    """Largest deviation of ``got`` from ``want`` as a share of ``size``, the oracle's value for squared inputs."""
    assert got.shape == want.shape, (got.shape, want.shape)
    if got.numel() == 0:
        return 0.0
    scale = size.max().sqrt().item()
    worst = (got.detach().double().cpu() - want).abs().max().item()
    return worst / scale if scale > 0 else worst
