"""Mixers: layers ``(B, L, D) -> (B, L, D)`` that mix along the sequence, behind one interface."""

from hyena.mixers.aft import AFT, AFTConv, AFTConvState, AFTState
from hyena.mixers.attention import Attention, AttentionState
from hyena.mixers.base import Mixer, State, StateSize
from hyena.mixers.block_recurrent import BlockRecurrent, BlockRecurrentState
from hyena.mixers.hyena import HyenaOperator, HyenaState
from hyena.mixers.linear_attention import LinearAttention, LinearAttentionState
from hyena.mixers.s5 import S5, S5State

__all__ = [
    "AFT",
    "S5",
    "AFTConv",
    "AFTConvState",
    "AFTState",
    "Attention",
    "AttentionState",
    "BlockRecurrent",
    "BlockRecurrentState",
    "HyenaOperator",
    "HyenaState",
    "LinearAttention",
    "LinearAttentionState",
    "Mixer",
    "S5State",
    "State",
    "StateSize",
]
