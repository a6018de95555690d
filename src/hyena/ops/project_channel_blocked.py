"""``hyena::project_channel_blocked``, ``project_from_channel_blocked``: linear layers around the CPU's mixing step.

They write and read ``(B, C / 16, L, 16)`` and are ``F.linear`` in every other respect. A kernel of the mixing step goes
through a whole row of 16 channels: 64 bytes of each position of ``(B, L, C)``, of a block everything.

On the CPU always by the kernel, which torch's matrix products may be faster than: who calls them asks
:func:`is_channel_blocked_faster` first.

Dimensions: B batch, L length, D channels in, C channels out.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from hyena.ops._checks import check_blocks, check_linear, check_rows, check_whole_blocks
from hyena.ops._extension import EXTENSION
from hyena.ops._layout import CHANNEL_BLOCK, dense_rows, from_blocks, is_blocked, to_blocks
from hyena.ops._library import define, has_kernel
from hyena.ops._modules import autocasts

# Rows of fewer positions, and fewer positions in all, gain nothing (docs/kernels.md, CPU).
_SHORTEST, _FEWEST = 64, 256


def _to(u: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return to_blocks(F.linear(dense_rows(u), weight, bias)).contiguous()


def _from(u: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return F.linear(dense_rows(from_blocks(u)), weight, bias)


def _check_to(u: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    check_rows("u", u)
    check_linear(u, weight, bias)
    check_whole_blocks("weight", weight.size(0))


def _check_from(u: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    check_blocks("u", u)
    check_linear(u, weight, bias)


def _backward(inputs: Sequence, grads: Sequence[Tensor | None], needs: Sequence[bool]) -> tuple:
    """Of both: what came in one order goes back in that order."""
    u, weight, _ = inputs
    g = grads[0]
    assert g is not None
    back = torch.ops.hyena.project_channel_blocked if is_blocked(u) else torch.ops.hyena.project_from_channel_blocked
    du = back(g, weight.t(), None) if needs[0] else None
    dw, db = torch.ops.hyena.project_backward(g, u) if needs[1] or needs[2] else (None, None)
    return du, dw, db


define(
    "project_channel_blocked(Tensor u, Tensor weight, Tensor? bias) -> Tensor",
    _to,
    lambda u, weight, bias: u.new_empty(u.size(0), weight.size(0) // CHANNEL_BLOCK, u.size(1), CHANNEL_BLOCK),
    check=_check_to,
    backward=_backward,
    plain=_to,
)
define(
    "project_from_channel_blocked(Tensor u, Tensor weight, Tensor? bias) -> Tensor",
    _from,
    lambda u, weight, bias: u.new_empty(u.size(0), u.size(2), weight.size(0)),
    check=_check_from,
    backward=_backward,
    plain=_from,
)


def is_channel_blocked_faster(u: Tensor, channels: int) -> bool:
    """Whether a mixing step of so many channels is faster on a projection of ``u`` in channel blocks.

    So it is wherever the kernel that writes them is no slower than torch's matrix product.
    """
    if not EXTENSION.multiplies(u) or channels % CHANNEL_BLOCK != 0 or not has_kernel("recurrence", u.device):
        return False
    # An exported program has the one way that is fast on other machines too.
    if torch.compiler.is_exporting() or u.dim() != 3 or autocasts(u.device):
        return False
    if torch.compiler.is_compiling():
        return True
    # Where torch's products are good, what the mixing step gains must outweigh putting a large weight in order.
    fewest = min(EXTENSION.fast_rows, max(_FEWEST, 2 * u.size(2)))
    return u.size(1) >= _SHORTEST and u.size(0) * u.size(1) >= fewest
