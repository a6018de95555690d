"""Small DNA models, and what genomics computes by definition: one sequence at a time, letter by letter."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hyena.models import CausalLM, CausalLMConfig, Decoder, HyenaDNA, HyenaDNAConfig

L_MAX = 64
MODELS = ["dna", "hyena", "attention"]
# HyenaDNA's vocabulary, and what pairs with what, written out.
TOKEN = {"A": 7, "C": 8, "G": 9, "T": 10, "N": 11}
PAIR = {"A": "T", "C": "G", "G": "C", "T": "A", "N": "N"}


def build(name: str = "dna", dtype: torch.dtype = torch.float64, **changes: Any) -> Decoder:
    """A model whose weights are large enough that every part of it shows in the output."""
    torch.manual_seed(0)
    model: Decoder
    if name == "dna":
        sizes = {"l_max": L_MAX, "d_model": 16, "num_layers": 2, "filter_width": 8, "head": "lm"}
        model = HyenaDNA(HyenaDNAConfig(**{**sizes, **changes}), dtype=dtype)
    else:
        mixer = {"hyena": "HyenaOperator", "attention": "Attention"}[name]
        options = {"num_heads": 4} if name == "attention" else {}
        config = CausalLMConfig(12, L_MAX, d_model=16, num_layers=2, mixer=mixer, mixer_options=options)
        model = CausalLM(config, dtype=dtype)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.2 * torch.randn_like(p))
    return model.eval()


def tokens(sequence: str, strand: str = "forward") -> Tensor:
    letters = [PAIR[letter] for letter in reversed(sequence)] if strand == "reverse" else list(sequence)
    return torch.tensor([[TOKEN[letter] for letter in letters]])


@torch.no_grad()
def log_likelihoods(model: Decoder, sequence: str, strand: str = "forward", start: int | None = None) -> Tensor:
    """Of each letter that something comes before, with a run over what comes before it."""
    row = tokens(sequence, strand)
    if start is not None:
        row = torch.cat([torch.tensor([[start]]), row], dim=1)
    found = []
    for at in range(1, row.size(1)):
        weights = model(row[:, :at])[0, -1].double().exp()
        found.append((weights[row[0, at]] / weights.sum()).log())
    return torch.stack(found)


@torch.no_grad()
def hidden_states(model: Decoder, sequence: str, strand: str = "forward") -> list[Tensor]:
    """``(L, D)`` before the first block, after each, and normalised."""
    row = tokens(sequence, strand)
    x = model.embedding(row)
    if model.positions is not None:
        x = x + model.positions(torch.arange(row.size(1)))
    found = [x]
    for block in model.blocks:
        x = block(x)
        found.append(x)
    return [each[0] for each in [*found, model.norm(x)]]
