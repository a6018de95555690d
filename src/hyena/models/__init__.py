"""Whole models built from the layers."""

from hyena.models.blocks import MLP, Attention, Block
from hyena.models.lm import HyenaLM, HyenaLMConfig

__all__ = ["MLP", "Attention", "Block", "HyenaLM", "HyenaLMConfig"]
