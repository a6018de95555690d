"""No mixer keeps anything that grows with the square of the length."""

from __future__ import annotations

import inspect

import pytest
import torch
from torch import Tensor

import hyena.mixers
from hyena.mixers import Mixer

KINDS = [getattr(hyena.mixers, name) for name in hyena.mixers.__all__]
KINDS = [kind for kind in KINDS if issubclass(kind, Mixer) and not inspect.isabstract(kind)]


def kept(mixer: Mixer, length: int) -> int:
    """Bytes that a forward pass keeps for the backward one; storages that several tensors share count once."""
    seen: dict[int, int] = {}

    def pack(t: Tensor) -> Tensor:
        storage = t.untyped_storage()
        seen[storage.data_ptr()] = storage.nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        mixer(torch.randn(1, length, 16))
    return sum(seen.values())


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_what_training_keeps_grows_with_the_length(kind: type[Mixer], causal: bool) -> None:
    if kind.__name__ == "BlockRecurrent" and not causal:
        pytest.skip("it knows the past alone")
    if kind.takes_grid and causal:
        pytest.skip("patches come in no order")
    grid = {"grid": (64, 64), "prefix_tokens": 0} if kind.takes_grid else {}
    mixer = kind(16, 4096, causal=causal, **grid)
    fewer, more = kept(mixer, 1024), kept(mixer, 4096)
    assert more < 5.5 * fewer, f"{fewer} bytes for 1024 positions, {more} for 4096"
