"""Going on from what came before: states, steps, and sampling from models."""

from hyena.generation.sampling import generate, sample
from hyena.generation.state import HyenaState, StateSize
from hyena.generation.stepping import init_state, prefill, state_size, step

__all__ = ["HyenaState", "StateSize", "generate", "init_state", "prefill", "sample", "state_size", "step"]
