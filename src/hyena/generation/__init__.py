"""Generation: text from any model that has a decoding state, and sampling."""

from hyena.generation.protocol import LanguageModel
from hyena.generation.sampling import generate_by_rerun, sample
from hyena.generation.text import generate, stream

__all__ = ["LanguageModel", "generate", "generate_by_rerun", "sample", "stream"]
