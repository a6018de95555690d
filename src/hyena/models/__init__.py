"""Whole models built from the layers."""

from hyena.models.blocks import MLP, Attention, Block
from hyena.models.causal_lm import HyenaLM, HyenaLMConfig
from hyena.models.decoder import Decoder
from hyena.models.hyenadna import HyenaDNA, HyenaDNAConfig

__all__ = ["MLP", "Attention", "Block", "Decoder", "HyenaDNA", "HyenaDNAConfig", "HyenaLM", "HyenaLMConfig"]
