"""Whole models: mixers stacked, with embeddings and heads."""

from hyena.models.blocks import MLP, Block, GatedMLP, RMSNorm
from hyena.models.causal_lm import CausalLM, CausalLMConfig, next_token_loss
from hyena.models.decoder import Decoder, ModelState
from hyena.models.hyena_iso import HyenaISO, HyenaISOBlock, HyenaISOConfig
from hyena.models.hyenadna import HyenaDNA, HyenaDNAConfig
from hyena.models.m2_bert import BlockDiagonalGLU, BlockDiagonalLinear, M2Bert, M2BertConfig
from hyena.models.perceiver_ar import PerceiverAR, PerceiverARConfig, PerceiverARState
from hyena.models.striped_hyena import StripedHyena, StripedHyenaConfig
from hyena.models.vit import ViT, ViTConfig

__all__ = [
    "MLP",
    "Block",
    "BlockDiagonalGLU",
    "BlockDiagonalLinear",
    "CausalLM",
    "CausalLMConfig",
    "Decoder",
    "GatedMLP",
    "HyenaDNA",
    "HyenaDNAConfig",
    "HyenaISO",
    "HyenaISOBlock",
    "HyenaISOConfig",
    "M2Bert",
    "M2BertConfig",
    "ModelState",
    "PerceiverAR",
    "PerceiverARConfig",
    "PerceiverARState",
    "RMSNorm",
    "StripedHyena",
    "StripedHyenaConfig",
    "ViT",
    "ViTConfig",
    "next_token_loss",
]
