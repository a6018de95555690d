"""Hyena: layers that take the place of attention, sub-quadratic and exactly causal."""

from hyena import functional
from hyena.filters import HyenaFilter
from hyena.operator import HyenaOperator

__all__ = ["HyenaFilter", "HyenaOperator", "functional"]
__version__ = "0.1.0"
