"""Hyena: layers that take the place of attention, sub-quadratic and exactly causal."""

from hyena import checkpoints, functional, generation, models
from hyena.conv import distill
from hyena.filters import HyenaFilter
from hyena.integrations.attention import HyenaAttention
from hyena.integrations.replace import ReplacementReport, replace_attention
from hyena.integrations.sites import AttentionSite, CannotReplaceError, register_attention
from hyena.mixers import HyenaOperator
from hyena.ops import backend_report
from hyena.optim import param_groups

__all__ = [
    "AttentionSite",
    "CannotReplaceError",
    "HyenaAttention",
    "HyenaFilter",
    "HyenaOperator",
    "ReplacementReport",
    "backend_report",
    "checkpoints",
    "distill",
    "functional",
    "generation",
    "models",
    "param_groups",
    "register_attention",
    "replace_attention",
]
__version__ = "0.1.0"
