"""Loading weights that other Hyena projects have trained: safari's operators and HyenaDNA."""

from hyena.checkpoints.dna import hyenadna
from hyena.checkpoints.safari import operator_from_safari

__all__ = ["hyenadna", "operator_from_safari"]
