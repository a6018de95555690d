"""Going on from what came before: states, steps, and sampling from models."""

from hyena.conv.distill import distill, distillation_errors
from hyena.filters import ModalFilter
from hyena.generation.model import state_size
from hyena.generation.protocol import LanguageModel
from hyena.generation.sampling import generate_by_rerun, sample
from hyena.generation.state import AttentionState, HyenaState, ModelState, StateSize
from hyena.generation.stepping import init_state, prefill, step
from hyena.generation.text import generate, stream

__all__ = [
    "AttentionState",
    "HyenaState",
    "LanguageModel",
    "ModalFilter",
    "ModelState",
    "StateSize",
    "distill",
    "distillation_errors",
    "generate",
    "generate_by_rerun",
    "init_state",
    "prefill",
    "sample",
    "state_size",
    "step",
    "stream",
]
