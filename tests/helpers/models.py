"""Small language models of every kind, for the tests of models and generation."""

from __future__ import annotations

from typing import Any

import torch

from hyena import HyenaOperator
from hyena.models import CausalLM, CausalLMConfig, Decoder, HyenaDNA, HyenaDNAConfig

V, L_MAX = 13, 48
MODELS = ["hyena", "attention", "dna"]


def build(name: str, mlp: str = "swiglu", **options: Any) -> Decoder:
    """A float64 model with weights large enough that its choices depend on all of them.

    ``mlp`` is not for ``"dna"``, which has its own. The output layer of ``"dna"`` is wider than its vocabulary.
    """
    sizes = {"vocab_size": V, "l_max": L_MAX, "d_model": 16, "num_layers": 2}
    model: Decoder
    if name == "dna":
        mixers = None
        if options:
            mixers = [HyenaOperator(16, L_MAX, **options, dtype=torch.float64) for _ in range(2)]
        model = HyenaDNA(HyenaDNAConfig(**sizes, head="lm", embed_dropout=0.0), mixers, dtype=torch.float64).eval()
    else:
        mixer = {"hyena": "HyenaOperator", "attention": "Attention"}[name]
        options = {"num_heads": 4} if name == "attention" else options
        config = CausalLMConfig(**sizes, mixer=mixer, mixer_options=options, mlp=mlp)
        model = CausalLM(config, dtype=torch.float64).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.3 * torch.randn_like(p))
    return model
