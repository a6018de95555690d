"""Mixers: layers ``(B, L, D) -> (B, L, D)`` that mix along the sequence, behind one interface; and over grids."""

from hyena.mixers.aft import AFT, AFTConv, AFTConvState, AFTState
from hyena.mixers.attention import Attention, AttentionState
from hyena.mixers.base import Mixer
from hyena.mixers.base_nd import MixerND
from hyena.mixers.bigbird import BigBird, BigBirdState
from hyena.mixers.block_recurrent import BlockRecurrent, BlockRecurrentState
from hyena.mixers.gss import GSS, GSSState
from hyena.mixers.h3 import H3, H3State
from hyena.mixers.hyena import HyenaOperator
from hyena.mixers.hyena_nd import HyenaND
from hyena.mixers.hyena_state import HyenaState
from hyena.mixers.linear_attention import LinearAttention, LinearAttentionState
from hyena.mixers.mega import Mega, MegaState
from hyena.mixers.monarch import MonarchMixer, MonarchMixerState
from hyena.mixers.patches import HyenaPatches
from hyena.mixers.rows import RowMixer
from hyena.mixers.s5 import S5, S5State
from hyena.mixers.state import State, StateSize

__all__ = [
    "AFT",
    "GSS",
    "H3",
    "S5",
    "AFTConv",
    "AFTConvState",
    "AFTState",
    "Attention",
    "AttentionState",
    "BigBird",
    "BigBirdState",
    "BlockRecurrent",
    "BlockRecurrentState",
    "GSSState",
    "H3State",
    "HyenaND",
    "HyenaOperator",
    "HyenaPatches",
    "HyenaState",
    "LinearAttention",
    "LinearAttentionState",
    "Mega",
    "MegaState",
    "Mixer",
    "MixerND",
    "MonarchMixer",
    "MonarchMixerState",
    "RowMixer",
    "S5State",
    "State",
    "StateSize",
]
