"""``hyena::recurrence`` in rows that the caches do not hold, where kernels keep less and compute more twice."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from helpers.cases import rand
from hyena import ops

LENGTH = 13_100  # a transform's buffer of more than kKeptInCache (recurrence_gradient.h) with any instruction set


def definition(z: Tensor, w: Tensor, b: Tensor, h: Tensor, d: Tensor, keep: Tensor, lengths: list[int]) -> Tensor:
    """Equation 4 of the paper, a row at a time, in real transforms of twice its length."""
    rows = []
    for part, kept in zip(z.split(lengths, 1), keep.split(lengths, 1), strict=True):
        n = part.size(1)
        x = F.pad((part * kept[..., None]).transpose(1, 2), (w.size(1) - 1, 0))
        x = F.conv1d(x, w[:, None], b, groups=w.size(0)).transpose(1, 2) * kept[..., None]
        first, *gate, v = x.split(d.size(1), 2)
        v = v * gate[0] if gate else v
        taps = h[0, :n].repeat_interleave(d.size(1) // h.size(2), 1)
        y = torch.fft.irfft(torch.fft.rfft(v, 2 * n, 1) * torch.fft.rfft(taps, 2 * n, 0), 2 * n, 1)[:, :n]
        rows.append(first * (y + d[0] * v))
    return torch.cat(rows, 1)


@pytest.mark.parametrize("blocked", [False, True], ids=["rows", "blocks"])
@pytest.mark.parametrize("parts", [2, 3], ids=["value filter", "order 2"])
@pytest.mark.parametrize(
    ("taps", "filters", "masked", "lengths"),
    [(3, 16, False, [LENGTH]), (3, 8, True, [LENGTH]), (1, 16, False, [LENGTH - 131, 131]), (5, 1, True, [LENGTH])],
    ids=["usual", "shared, mask", "packed, one tap", "one filter, five taps, mask"],
)
def test_gradients(taps: int, filters: int, masked: bool, lengths: list[int], parts: int, blocked: bool) -> None:
    channels = 16
    z, g = rand(1, LENGTH, parts * channels), rand(1, LENGTH, channels, seed=1)
    w, b, d = rand(parts * channels, taps, seed=2), rand(parts * channels, seed=3), rand(1, channels, seed=4)
    h = rand(1, LENGTH, filters, seed=5) * torch.exp(-torch.arange(LENGTH)[:, None] / 3e3)
    keep = rand(1, LENGTH, seed=6) > -0.5 if masked else torch.ones(1, LENGTH, dtype=torch.bool)
    cu_seqlens = None if len(lengths) == 1 else torch.tensor([0, *lengths]).cumsum(0)
    leaves = [t.double().requires_grad_() for t in (z, w, b, h, d)]
    y = definition(*leaves, keep.double(), lengths)
    expected = [y.detach(), *torch.autograd.grad(y, leaves, g.double())]
    leaves = [t.float().requires_grad_() for t in (z, w, b, h, d)]
    z, w, b, h, d = leaves
    order = z.unflatten(2, (-1, 16)).transpose(1, 2) if blocked else z
    spectrum = ops.filter_spectrum(h, ops.transform_length(max(lengths)))
    y = ops.recurrence(order, w, b, spectrum, d, keep if masked else None, cu_seqlens)
    y = y.transpose(1, 2).flatten(2) if blocked else y
    found = [y.detach(), *torch.autograd.grad(y, leaves, g.float())]
    for name, a, e in zip(("y", "z", "weight", "bias", "h", "d"), found, expected, strict=True):
        error = (a.double() - e).norm() / e.norm()
        assert error < 2e-6, (name, error)
