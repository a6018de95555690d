"""Whole models built from the layers."""

from hyena.models.blocks import MLP, Attention, Block
from hyena.models.decoder import Decoder
from hyena.models.hyenadna import HyenaDNA, HyenaDNAConfig
from hyena.models.lm import HyenaLM, HyenaLMConfig

__all__ = ["MLP", "Attention", "Block", "Decoder", "HyenaDNA", "HyenaDNAConfig", "HyenaLM", "HyenaLMConfig"]
