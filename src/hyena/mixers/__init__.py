"""Mixers: layers ``(B, L, D) -> (B, L, D)`` that mix along the sequence, behind one interface."""

from hyena.mixers.attention import Attention, AttentionState
from hyena.mixers.base import Mixer, State, StateSize
from hyena.mixers.hyena import HyenaOperator, HyenaState

__all__ = ["Attention", "AttentionState", "HyenaOperator", "HyenaState", "Mixer", "State", "StateSize"]
