"""Small models of ``hyena.integrations.auto``, and rows for them.

Dimensions: B batch, L length, V vocabulary.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from helpers.released import HF_CONFIG, golden

V, L = 40, 12
TOKENS = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
HEADS = ["Model", "ForCausalLM", "ForMaskedLM", "ForSequenceClassification", "ForTokenClassification"]
NAMES = [f"Hyena{head}" for head in HEADS] + [f"HyenaDNA{head}" for head in HEADS if head != "ForMaskedLM"]


def config(name: str = "HyenaForCausalLM", **changes: Any) -> Any:
    """A config for the class of this name."""
    from hyena.integrations import auto

    if name.startswith("HyenaDNA"):
        sizes = {"d_model": 16, "n_layer": 2, "max_seq_len": 64, "filter_order": 8, "activation_freq": 10}
        return auto.HyenaDNAConfig(**{**sizes, "embed_dropout": 0.0, **changes})
    sizes = {"vocab_size": V, "l_max": 64, "d_model": 16, "num_layers": 2, **TOKENS}
    options = {"filter": {"class": "HyenaFilter", "width": 8}}
    return auto.HyenaConfig(**{**sizes, "mixer_options": options, **changes})


def build(name: str = "HyenaForCausalLM", dtype: torch.dtype = torch.float64, **changes: Any) -> Any:
    """A model in eval mode whose weights are large enough that every part of it shows in the output."""
    from hyena.integrations import auto

    torch.manual_seed(0)
    model = getattr(auto, name)(config(name, **changes)).to(dtype)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.2 * torch.randn_like(p))
    return model.eval()


def tokens(name: str = "HyenaForCausalLM", rows: int = 3, length: int = L) -> Tensor:
    low, high = (7, 12) if name.startswith("HyenaDNA") else (3, V)
    return torch.randint(low, high, (rows, length), generator=torch.Generator().manual_seed(1))


def result(output: Any) -> Tensor:
    """Logits, or hidden states of a model without a head."""
    return output.logits if "logits" in output else output.last_hidden_state


def labels(name: str, ids: Tensor) -> Tensor:
    """Labels for the head of this class, of two classes where there are some."""
    if name.endswith("ForSequenceClassification"):
        return ids[:, 0] % 2
    return ids % 2 if name.endswith("ForTokenClassification") else ids


GOLDEN = golden("hyenadna_tiny")
PUBLISHED: dict[str, Any] = HF_CONFIG | {
    "auto_map": {
        "AutoConfig": "configuration_hyena.HyenaConfig",
        "AutoModel": "modeling_hyena.HyenaDNAModel",
        "AutoModelForCausalLM": "modeling_hyena.HyenaDNAForCausalLM",
        "AutoModelForSequenceClassification": "modeling_hyena.HyenaDNAForSequenceClassification",
    },
}
_SPECIAL = {
    "bos_token": "[BOS]",
    "cls_token": "[CLS]",
    "eos_token": "[SEP]",
    "mask_token": "[MASK]",
    "pad_token": "[PAD]",
    "sep_token": "[SEP]",
    "unk_token": "[UNK]",
}


def published(folder: Path, **changes: Any) -> Path:
    """A folder as HyenaDNA's ``-hf`` models are published, with the golden weights and a random output layer."""
    folder.mkdir(parents=True, exist_ok=True)
    state = {f"hyena.{key}": t for key, t in GOLDEN.state.items() if not key.endswith(("3.freq", "5.freq"))}
    state["lm_head.weight"] = torch.randn(16, 32, generator=torch.Generator().manual_seed(2))
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    tokenizer = {
        **_SPECIAL,
        "add_prefix_space": False,
        "added_tokens_decoder": {},
        "auto_map": {"AutoTokenizer": ["tokenization_hyena.HyenaDNATokenizer", None]},
        "clean_up_tokenization_spaces": True,
        "model_max_length": 66,
        "padding_side": "left",
        "tokenizer_class": "HyenaDNATokenizer",
    }
    for name, values in (
        ("config.json", PUBLISHED | changes),
        ("tokenizer_config.json", tokenizer),
        ("special_tokens_map.json", _SPECIAL),
    ):
        (folder / name).write_text(json.dumps(values), encoding="utf-8")
    return folder
