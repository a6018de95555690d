"""Weights of other projects, loaded (safari, HyenaDNA, M2-BERT, StripedHyena and Evo), and HyenaDNA saved."""

from hyena.checkpoints.hyenadna import load_hyenadna
from hyena.checkpoints.hyenadna_save import save_hyenadna
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
    "save_hyenadna",
    "striped_hyena_config",
    "striped_hyena_plan",
]
