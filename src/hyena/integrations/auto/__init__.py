"""Hyena models for ``transformers``' Auto classes. Importing this registers them, and imports ``transformers``.

``AutoModelForCausalLM.from_config(HyenaConfig(vocab_size=256, l_max=1024))``
"""

try:
    import transformers  # noqa: F401  # to say what is missing
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        "hyena.integrations.auto needs transformers 5.0 or later: pip install 'hyena[transformers]'", name=error.name
    ) from error

from hyena.integrations.auto.base import HyenaLayer, HyenaModel, HyenaPreTrainedModel
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
from hyena.integrations.auto.registration import register
from hyena.integrations.auto.tokenizer import HyenaDNATokenizer

register()

__all__ = [
    "HyenaConfig",
    "HyenaDNAConfig",
    "HyenaDNAForCausalLM",
    "HyenaDNAForSequenceClassification",
    "HyenaDNAForTokenClassification",
    "HyenaDNAModel",
    "HyenaDNATokenizer",
    "HyenaForCausalLM",
    "HyenaForMaskedLM",
    "HyenaForSequenceClassification",
    "HyenaForTokenClassification",
    "HyenaLayer",
    "HyenaModel",
    "HyenaPreTrainedModel",
]
