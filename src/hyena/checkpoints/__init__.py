"""Loading weights that other projects have trained: safari's operators, HyenaDNA, M2-BERT, StripedHyena and Evo."""

from hyena.checkpoints.hyenadna import load_hyenadna
from hyena.checkpoints.m2 import load_m2_bert, load_m2_mixer
from hyena.checkpoints.safari import load_safari_operator
from hyena.checkpoints.striped import load_striped_hyena, striped_hyena_config, striped_hyena_plan

# Earlier names.
hyenadna = load_hyenadna
operator_from_safari = load_safari_operator

__all__ = [
    "hyenadna",
    "load_hyenadna",
    "load_m2_bert",
    "load_m2_mixer",
    "load_safari_operator",
    "load_striped_hyena",
    "operator_from_safari",
    "striped_hyena_config",
    "striped_hyena_plan",
]
