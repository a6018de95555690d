"""Mixers: layers ``(B, L, D) -> (B, L, D)`` that mix along the sequence, behind one interface."""

from hyena.mixers.aft import AFT, AFTConv, AFTConvState, AFTState
from hyena.mixers.attention import Attention, AttentionState
from hyena.mixers.base import Mixer, State, StateSize
from hyena.mixers.hyena import HyenaOperator, HyenaState
from hyena.mixers.linear_attention import LinearAttention, LinearAttentionState

__all__ = [
    "AFT",
    "AFTConv",
    "AFTConvState",
    "AFTState",
    "Attention",
    "AttentionState",
    "HyenaOperator",
    "HyenaState",
    "LinearAttention",
    "LinearAttentionState",
    "Mixer",
    "State",
    "StateSize",
]
