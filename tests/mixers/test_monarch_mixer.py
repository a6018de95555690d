"""Monarch Mixer: against dense matrices."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from helpers.definitions import assert_defined
from helpers.state_spaces import convolution
from hyena.filters import ExplicitFilter
from hyena.mixers import MonarchMixer


def definition(layer: MonarchMixer, u: Tensor) -> Tensor:
    z = F.pad(layer.in_proj(u), (0, 0, 2, 0)).transpose(1, 2)
    z = F.conv1d(z, layer.short.weight[:, None], layer.short.bias, groups=z.size(1)).transpose(1, 2)
    a, b, v = z.chunk(3, dim=2)

    def conv(part: torch.nn.Module, x: Tensor) -> Tensor:
        taps, l_max = part.filter.weight[0].T, layer.l_max
        if layer.causal:
            return convolution(taps, x) + part.bias[0] * x
        return convolution(taps[:, l_max - 1 :], x, taps[:, : l_max - 1].flip(1)) + part.bias[0] * x

    y = b * conv(layer.conv, a * v)
    return layer.out_proj(y if layer.residual is None else y + conv(layer.residual, u))


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("length", [1, 8])
def test_is_its_matrices(length: int, residual: bool, causal: bool):
    make = partial(MonarchMixer, 5, 8, filter=ExplicitFilter, residual=residual, causal=causal)
    layer = make(dtype=torch.float64)
    assert_defined(layer, lambda u: definition(layer, u), length)


def test_wrong_arguments():
    with pytest.raises(ValueError, match="short_taps must be at least 1, got 0"):
        MonarchMixer(8, 16, short_taps=0)
    with pytest.raises(TypeError, match="residual must be True or False, got 1"):
        MonarchMixer(8, 16, residual=1)
    with pytest.raises(ValueError, match="causal=False needs the whole input at once, so this MonarchMixer cannot"):
        MonarchMixer(8, 16, causal=False).init_state(1)
