"""Loading weights that other Hyena projects have trained: safari's operators, HyenaDNA and M2-BERT."""

from hyena.checkpoints.hyenadna import load_hyenadna
from hyena.checkpoints.m2 import load_m2_bert, load_m2_mixer
from hyena.checkpoints.safari import load_safari_operator

# Earlier names.
hyenadna = load_hyenadna
operator_from_safari = load_safari_operator

__all__ = ["hyenadna", "load_hyenadna", "load_m2_bert", "load_m2_mixer", "load_safari_operator", "operator_from_safari"]
