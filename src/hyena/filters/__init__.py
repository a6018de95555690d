"""Long filters: implicit, explicit, state spaces, moving averages, and the base class of one's own.

A filter is called with a length and returns taps; it does not know how they are applied.
"""

from hyena.filters.base import Filter, Modes
from hyena.filters.base_nd import FilterND
from hyena.filters.ckconv import CKConv, CoordinateEncoding
from hyena.filters.dlr import DLR
from hyena.filters.dss import DSS
from hyena.filters.ema import EMA
from hyena.filters.encoding import LearnedEncoding, PositionalEncoding
from hyena.filters.explicit import ExplicitFilter
from hyena.filters.ffn import SineFFN
from hyena.filters.film import FiLMFilter
from hyena.filters.film_nd import FiLMFilterND
from hyena.filters.fourier import FourierFilter
from hyena.filters.implicit import HyenaFilter
from hyena.filters.implicit_nd import HyenaFilterND
from hyena.filters.modal import ModalFilter
from hyena.filters.paired import PairedFilter
from hyena.filters.s4 import S4
from hyena.filters.s4d import S4D
from hyena.filters.separable import S4ND, SeparableFilter
from hyena.filters.shift import ShiftSSM
from hyena.filters.transfer import TransferFunctionFilter
from hyena.filters.window import ExponentialWindow
from hyena.filters.window_nd import ExponentialWindowND, GaussianWindowND

__all__ = [
    "DLR",
    "DSS",
    "EMA",
    "S4",
    "S4D",
    "S4ND",
    "CKConv",
    "CoordinateEncoding",
    "ExplicitFilter",
    "ExponentialWindow",
    "ExponentialWindowND",
    "FiLMFilter",
    "FiLMFilterND",
    "Filter",
    "FilterND",
    "FourierFilter",
    "GaussianWindowND",
    "HyenaFilter",
    "HyenaFilterND",
    "LearnedEncoding",
    "ModalFilter",
    "Modes",
    "PairedFilter",
    "PositionalEncoding",
    "SeparableFilter",
    "ShiftSSM",
    "SineFFN",
    "TransferFunctionFilter",
]
