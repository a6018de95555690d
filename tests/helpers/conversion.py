"""Small models that are converted in tests, with batches for them."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor, nn

from hyena.filters import HyenaFilter
from hyena.models import CausalLM, CausalLMConfig

D, M, L, LAYERS, VOCAB = 16, 4, 12, 3, 20
FILTER = {"filter": partial(HyenaFilter, emb_dim=5, width=16, freq=1.0)}
QUIET = {"progress": False, "evaluate": 2, "start_batches": 1}


def language_model(seed: int = 0, layers: int = LAYERS) -> CausalLM:
    """A CausalLM of attention, in eval mode, whose attention is not flat."""
    torch.manual_seed(seed)
    # With a gate in its MLPs, weights as large as `sharpened` makes them would multiply.
    config = CausalLMConfig(VOCAB, L, D, layers, mixer="Attention", mixer_options={"num_heads": M}, mlp="gelu")
    return sharpened(CausalLM(config).eval())


def sharpened(model: nn.Module, scale: float = 6.0) -> nn.Module:
    """The model with larger weights, so that new attention is no plain average."""
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.dim() == 2 and "embedding" not in name and "head" not in name:
                p *= scale
    return model


def pairs(count: int, seed: int = 0, batch: int = 4, length: int = L) -> list[tuple[Tensor, Tensor]]:
    """Batches of ``(tokens, next tokens)``, of a text that counts up with a few mistakes."""
    return list(endless_pairs(seed, batch, length, count))


def endless_pairs(seed: int = 0, batch: int = 4, length: int = L, count: int | None = None) -> Iterator:
    """The same from a generator, without end unless ``count`` says how many."""
    g = torch.Generator().manual_seed(seed)
    made = 0
    while count is None or made < count:
        start = torch.randint(VOCAB, (batch, 1), generator=g)
        x = (start + torch.arange(length + 1)) % VOCAB
        wrong = torch.rand(x.shape, generator=g) < 0.1
        x = torch.where(wrong, torch.randint(VOCAB, x.shape, generator=g), x)
        yield x[:, :-1], x[:, 1:]
        made += 1


def weights(model: nn.Module) -> dict[str, Tensor]:
    """Copies of a model's weights."""
    return {name: t.clone() for name, t in model.state_dict().items()}


def same_weights(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    """Whether names and bits are equal."""
    return a.keys() == b.keys() and all(torch.equal(t, b[name]) for name, t in a.items())
