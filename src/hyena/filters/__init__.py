"""Long filters: implicit, explicit, modal, and the base class of one's own.

A filter is called with a length and returns taps; it does not know how they are applied.
"""

from hyena.filters.base import Filter, Modes
from hyena.filters.encoding import LearnedEncoding, PositionalEncoding
from hyena.filters.explicit import ExplicitFilter
from hyena.filters.ffn import SineFFN
from hyena.filters.implicit import HyenaFilter
from hyena.filters.modal import ModalFilter
from hyena.filters.window import ExponentialWindow

__all__ = [
    "ExplicitFilter",
    "ExponentialWindow",
    "Filter",
    "HyenaFilter",
    "LearnedEncoding",
    "ModalFilter",
    "Modes",
    "PositionalEncoding",
    "SineFFN",
]
