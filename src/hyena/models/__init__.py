"""Whole models: mixers stacked, with embeddings and heads."""

from hyena.models.blocks import MLP, Block
from hyena.models.causal_lm import CausalLM, CausalLMConfig, next_token_loss
from hyena.models.decoder import Decoder, ModelState
from hyena.models.hyenadna import HyenaDNA, HyenaDNAConfig

__all__ = [
    "MLP",
    "Block",
    "CausalLM",
    "CausalLMConfig",
    "Decoder",
    "HyenaDNA",
    "HyenaDNAConfig",
    "ModelState",
    "next_token_loss",
]
