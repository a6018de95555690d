"""Telling ``transformers`` and PEFT of the classes here."""

from __future__ import annotations

from typing import Any

import transformers
from transformers import AutoConfig, AutoTokenizer

from hyena.integrations.auto.base import HyenaModel
from hyena.integrations.auto.config import HyenaConfig
from hyena.integrations.auto.heads import (
    HyenaForCausalLM,
    HyenaForMaskedLM,
    HyenaForSequenceClassification,
    HyenaForTokenClassification,
)
from hyena.integrations.auto.hyenadna import (
    HyenaDNAForCausalLM,
    HyenaDNAForSequenceClassification,
    HyenaDNAForTokenClassification,
    HyenaDNAModel,
)
from hyena.integrations.auto.hyenadna_config import HyenaDNAConfig
from hyena.integrations.auto.tokenizer import HyenaDNATokenizer

_MODELS: dict[Any, dict[str, Any]] = {
    HyenaConfig: {
        "AutoModel": HyenaModel,
        "AutoModelForCausalLM": HyenaForCausalLM,
        "AutoModelForMaskedLM": HyenaForMaskedLM,
        "AutoModelForSequenceClassification": HyenaForSequenceClassification,
        "AutoModelForTokenClassification": HyenaForTokenClassification,
    },
    HyenaDNAConfig: {
        "AutoModel": HyenaDNAModel,
        "AutoModelForCausalLM": HyenaDNAForCausalLM,
        "AutoModelForSequenceClassification": HyenaDNAForSequenceClassification,
        "AutoModelForTokenClassification": HyenaDNAForTokenClassification,
    },
}

# What adapters are put on if they are not told: the projections around the mixing. Every mixer here has them.
_ADAPTED = ["in_proj", "out_proj"]
# The tables of PEFT that name other things than linear layers to adapt.
_OTHER_TABLES = ("IA3", "LNTUNING", "BEFT")


def register() -> None:
    """Registers configs, models and tokenizers with the Auto classes, and what PEFT adapts by default."""
    for config, models in _MODELS.items():
        AutoConfig.register(config.model_type, config, exist_ok=True)
        for auto, model in models.items():
            getattr(transformers, auto).register(config, model, exist_ok=True)
    AutoTokenizer.register(HyenaDNAConfig, fast_tokenizer_class=HyenaDNATokenizer, exist_ok=True)
    _register_adapters()


def _register_adapters() -> None:
    try:
        from peft.utils import constants
    except ImportError:  # not installed, or made for another transformers: nothing to tell it
        return
    for name, table in vars(constants).items():
        if not name.startswith("TRANSFORMERS_MODELS_TO_") or any(other in name for other in _OTHER_TABLES):
            continue
        if name.endswith("_TARGET_MODULES_MAPPING"):
            for config in _MODELS:
                table.setdefault(config.model_type, list(_ADAPTED))
