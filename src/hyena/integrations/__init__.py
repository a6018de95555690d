"""Other projects' models: the contract of ``nn.MultiheadAttention``, and models whose attention is replaced."""

from hyena.integrations.adapter import AttentionAdapter
from hyena.integrations.attention import HyenaAttention
from hyena.integrations.history import MixerHistory
from hyena.integrations.pretrained import load_pretrained
from hyena.integrations.replace import Kept, Replaced, ReplacementReport, replace_attention
from hyena.integrations.sites import AttentionSite, CannotReplaceError, register_attention

__all__ = [
    "AttentionAdapter",
    "AttentionSite",
    "CannotReplaceError",
    "HyenaAttention",
    "Kept",
    "MixerHistory",
    "Replaced",
    "ReplacementReport",
    "load_pretrained",
    "register_attention",
    "replace_attention",
]
