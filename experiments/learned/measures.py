"""What a trained model's mixers do: taps, how far they reach, their spectra; matrices, and where they look.

Dimensions: B batch, L length, C channels, K taps.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from hyena import HyenaOperator
from hyena.filters import Filter
from hyena.models import CausalLM

BANDS = 64  # of a spectrum, from frequency 0 to half a cycle a position
OFFSETS = 4  # from a key on: the key, its value, and what the short convolution still sees of them


def operators(model: CausalLM) -> list[HyenaOperator]:
    """The Hyena operators of a model, layer by layer."""
    return [block.mixer for block in model.blocks if isinstance(block.mixer, HyenaOperator)]


@torch.no_grad()
def taps(model: CausalLM, length: int) -> Tensor:
    """The long filters of every layer, ``(layers, length, C)``; without the weight ``d`` of the input itself."""
    return torch.cat([operator.conv.filter(length) for operator in operators(model)])


def energy(h: Tensor) -> Tensor:
    """The share of a filter's energy that has come by each lag, ``(…, K, C)``."""
    squares = h.double().square()
    return squares.cumsum(-2) / squares.sum(-2, keepdim=True)


def reach(h: Tensor, share: float) -> list[float]:
    """Of each layer the median over channels of the taps by which this share of the energy has come."""
    return [float(x) for x in ((energy(h) < share).sum(-2) + 1).double().median(-1).values]


def spectrum(h: Tensor) -> Tensor:
    """The power of each layer's filters by frequency, ``(layers, BANDS)``; every channel's sums to 1."""
    power = torch.fft.rfft(h.double(), n=max(2 * BANDS, 2 * h.size(1)), dim=1).abs().square()[:, :-1]
    band = torch.arange(power.size(1)) * BANDS // power.size(1)
    power = power.new_zeros(power.size(0), BANDS, power.size(2)).index_add_(1, band, power)
    return (power / power.sum(1, keepdim=True)).mean(-1)


def centre(power: Tensor) -> list[float]:
    """The mean frequency of each layer's spectrum, in cycles a position: 0.25 where it is flat."""
    middle = (torch.arange(BANDS) + 0.5) * 0.5 / BANDS
    return [float(x) for x in (power * middle).sum(1)]


def of_filters(h: Tensor) -> dict[str, Any]:
    """The numbers that stand for filters ``(layers, K, C)``, by layer."""
    lags = [1 << i for i in range(h.size(1).bit_length()) if 1 << i <= h.size(1)]
    power = spectrum(h)
    return {
        "reach_90": reach(h, 0.9),
        "reach_99": reach(h, 0.99),
        "centre": centre(power),
        "lags": lags,
        "energy": [[round(float(row[k - 1]), 5) for k in lags] for row in energy(h).mean(-1)],
        "spectrum": [[round(float(x), 6) for x in row] for row in power],
    }


class Cut(Filter):
    """A filter without its taps from lag ``taps`` on."""

    def __init__(self, filter: Any, taps: int) -> None:
        super().__init__(filter.channels, filter.l_max, filter.num_filters)
        self.filter, self.support = filter, taps

    def forward(self, length: int) -> Tensor:
        h = self.filter(length)
        return h * (torch.arange(length, device=h.device) < self.support)[:, None]


@contextlib.contextmanager
def cut(model: CausalLM, taps: int) -> Iterator[None]:
    """The model with every long filter cut to so many taps, in the block."""
    before = [(operator.conv, operator.conv.filter) for operator in operators(model)]
    for conv, whole in before:
        conv.filter = Cut(whole, taps).eval()
    try:
        yield
    finally:
        for conv, whole in before:
            conv.filter = whole


@torch.no_grad()
def matrices(model: CausalLM, tokens: Tensor) -> list[Tensor]:
    """What each layer multiplies its values by: ``H(u)``, or attention's weights, ``(B, C, L, L)``."""
    found: list[Tensor] = []

    def take(mixer: Any, arguments: tuple[Tensor, ...]) -> None:
        found.append(mixer.to_matrix(arguments[0]))

    handles = [block.mixer.register_forward_pre_hook(take) for block in model.blocks]
    try:
        model(tokens)
    finally:
        for handle in handles:
            handle.remove()
    return found


def looks(rows: Tensor, tokens: Tensor) -> Tensor:
    """How much more the last row looks at what was asked for than at the same place if it was not, ``(C, OFFSETS)``.

    The mean weight of the positions that stand 0, 1, … after a key that the last token asks for, over that of the same
    positions in examples where another key stands there: how far back they are makes no difference. 1 is chance, and
    a value stands 1 after its key.

    Args:
        rows: the last rows of matrices, ``(N, C, L)``; an example's absolute values are taken to sum to 1.
        tokens: of associative recall, ``(N, L)``.
    """
    weight = rows.abs().double()
    weight = weight / weight.sum(-1, keepdim=True)
    pairs = tokens.size(1) - 2  # positions of pairs: then come the separator and the key
    asked = (tokens[:, 0:pairs:2] == tokens[:, -1:]).double()[:, None]  # (N, 1, keys)
    offsets = []
    for i in range(OFFSETS):
        there = weight[:, :, i:pairs:2]  # (N, C, keys)
        yes = asked[:, :, : there.size(2)]
        both = (yes.sum(0) > 0) & (yes.sum(0) < len(tokens))  # places that are asked for in some examples, not in all
        means = [(there * given).sum(0) / given.sum(0).clamp(min=1) * both for given in (yes, 1 - yes)]
        offsets.append(means[0].sum(-1) / means[1].sum(-1))
    return torch.stack(offsets, -1)
