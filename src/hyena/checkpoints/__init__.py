"""Loading weights that other Hyena projects have trained: safari's operators and HyenaDNA."""

from hyena.checkpoints.hyenadna import load_hyenadna
from hyena.checkpoints.safari import load_safari_operator

# Earlier names.
hyenadna = load_hyenadna
operator_from_safari = load_safari_operator

__all__ = ["hyenadna", "load_hyenadna", "load_safari_operator", "operator_from_safari"]
