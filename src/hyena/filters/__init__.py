"""Implicit long filters: encoding, FFN, window, and the filter made of them."""

from hyena.filters.encoding import LearnedEncoding, PositionalEncoding
from hyena.filters.ffn import SineFFN
from hyena.filters.implicit import HyenaFilter
from hyena.filters.window import ExponentialWindow

__all__ = ["ExponentialWindow", "HyenaFilter", "LearnedEncoding", "PositionalEncoding", "SineFFN"]
