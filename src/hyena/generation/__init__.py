"""Going on from what came before: states, steps, and sampling from models."""

from hyena.generation.model import ModelState
from hyena.generation.protocol import LanguageModel
from hyena.generation.sampling import generate_by_rerun, sample
from hyena.generation.text import generate, stream

__all__ = [
    "LanguageModel",
    "ModelState",
    "generate",
    "generate_by_rerun",
    "sample",
    "stream",
]
