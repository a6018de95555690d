"""A tiny model of every kind of transformers' attention that replace_attention promises to know, and inputs for it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
import transformers
from torch import Tensor, nn

D, M, L, LAYERS, VOCAB = 16, 4, 12, 2, 40
SIZES = [12, 7, 1]
TOKENS = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}

Inputs = Callable[[], dict[str, Tensor]]


@dataclasses.dataclass(frozen=True)
class Kind:
    """A model.

    Attributes:
        model, config: names of classes of transformers, which builds differ in.
        settings: of the config.
        inputs: keyword arguments of a forward without padding.
        output: the name of the output that is compared.
        replaced, kept: how many attention modules each.
        causal: of each replaced module.
        padded: sides on which rows may be padded, and are then exact.
        options: of replace_attention, where the config does not say.
        first: the first position's number.
    """

    model: str
    config: str
    settings: dict[str, Any]
    inputs: Inputs
    output: str = "logits"
    replaced: int = LAYERS
    kept: int = 0
    causal: tuple[bool, ...] = (True,) * LAYERS
    padded: tuple[str, ...] = ()
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    generates: bool = False
    first: int = 0

    def make(self, attention: str = "sdpa", **settings: Any) -> nn.Module:
        """The model in float64 and eval mode, without dropout."""
        config = getattr(transformers, self.config)(**self.settings | settings)
        torch.manual_seed(0)
        kind = getattr(transformers, self.model)
        if not kind._supports_sdpa:
            attention = "eager"
        model = kind._from_config(config, attn_implementation=attention)
        return model.double().eval()

    def run(self, model: nn.Module, **inputs: Any) -> Tensor:
        """The output that is compared."""
        return getattr(model(**inputs), self.output)


def tokens(seed: int = 0, length: int = L) -> Tensor:
    """(3, length), none of them special."""
    return torch.randint(4, VOCAB, (3, length), generator=torch.Generator().manual_seed(seed))


def text() -> dict[str, Tensor]:
    """Inputs of a model of text."""
    return {"input_ids": tokens()}


def two_texts() -> dict[str, Tensor]:
    """Inputs of an encoder and a decoder of text."""
    return {"input_ids": tokens(), "decoder_input_ids": tokens(1, 5)}


def image() -> dict[str, Tensor]:
    """Inputs of a model of images."""
    return {"pixel_values": torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(0)).double()}


def sound() -> dict[str, Tensor]:
    """Inputs of a model of sound."""
    return {"input_values": torch.randn(2, 400, generator=torch.Generator().manual_seed(0)).double()}


def spectrogram() -> dict[str, Tensor]:
    """Inputs of Whisper."""
    features = torch.randn(3, 8, 24, generator=torch.Generator().manual_seed(0)).double()
    return {"input_features": features, "decoder_input_ids": tokens(1, 5)}


def image_and_text() -> dict[str, Tensor]:
    """Inputs of CLIP."""
    return image() | {"input_ids": tokens()[:2]}


_SIZE = {"vocab_size": VOCAB, "hidden_size": D, "num_hidden_layers": LAYERS, "num_attention_heads": M}
_TEXT = _SIZE | {"intermediate_size": 2 * D, "max_position_embeddings": 48}
_MODERN = _TEXT | TOKENS | {"num_key_value_heads": 2, "head_dim": 4, "attention_dropout": 0.0}
_BERT = _TEXT | {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "pad_token_id": 2}
_IMAGE = {"image_size": 12, "patch_size": 4, "intermediate_size": 2 * D, **_SIZE}
_SOUND = _SIZE | {"intermediate_size": 2 * D, "conv_dim": (D, D), "conv_stride": (5, 4), "conv_kernel": (10, 8)}
_BART = {
    "d_model": D,
    "encoder_layers": LAYERS,
    "decoder_layers": LAYERS,
    "encoder_attention_heads": M,
    "decoder_attention_heads": M,
    "encoder_ffn_dim": 2 * D,
    "decoder_ffn_dim": 2 * D,
    "vocab_size": VOCAB,
    "dropout": 0.0,
    "decoder_start_token_id": 3,
} | TOKENS
_CLIP = {
    "text_config": _TEXT | TOKENS,
    "vision_config": {k: v for k, v in _IMAGE.items() if k != "vocab_size"},
    "projection_dim": D,
}
_LEFT, _RIGHT, _BOTH = ("left",), ("right",), ("left", "right")
_ENCODER = {"causal": (False,) * LAYERS, "padded": _BOTH}
_TWO = {"replaced": 2 * LAYERS, "causal": (False,) * LAYERS + (True,) * LAYERS}

KINDS = {
    "gpt2": Kind(
        "GPT2LMHeadModel",
        "GPT2Config",
        {"vocab_size": VOCAB, "n_embd": D, "n_layer": LAYERS, "n_head": M, "n_positions": 48}
        | {"attn_pdrop": 0.0, "resid_pdrop": 0.0, "embd_pdrop": 0.0}
        | TOKENS,
        text,
        padded=_BOTH,
        generates=True,
    ),
    "gpt_neox": Kind("GPTNeoXForCausalLM", "GPTNeoXConfig", _TEXT | TOKENS, text, padded=_BOTH, generates=True),
    "opt": Kind(
        "OPTForCausalLM",
        "OPTConfig",
        _TEXT | TOKENS | {"ffn_dim": 2 * D, "word_embed_proj_dim": D, "dropout": 0.0},
        text,
        padded=_BOTH,
        generates=True,
    ),
    "llama": Kind("LlamaForCausalLM", "LlamaConfig", _MODERN, text, padded=_BOTH, generates=True),
    "mistral": Kind("MistralForCausalLM", "MistralConfig", _MODERN, text, padded=_BOTH, generates=True),
    "qwen3": Kind("Qwen3ForCausalLM", "Qwen3Config", _MODERN, text, padded=_BOTH, generates=True),
    "gemma": Kind("GemmaForCausalLM", "GemmaConfig", _MODERN, text, padded=_BOTH, generates=True),
    "bert": Kind("BertForMaskedLM", "BertConfig", _BERT, text, **_ENCODER),
    "roberta": Kind("RobertaForMaskedLM", "RobertaConfig", _BERT, text, first=3, **_ENCODER),
    "distilbert": Kind(
        "DistilBertForMaskedLM",
        "DistilBertConfig",
        {"vocab_size": VOCAB, "dim": D, "n_layers": LAYERS, "n_heads": M, "hidden_dim": 2 * D}
        | {"max_position_embeddings": 48, "dropout": 0.0, "attention_dropout": 0.0},
        text,
        **_ENCODER | {"padded": _RIGHT},  # it has no position_ids
    ),
    "modernbert": Kind(
        "ModernBertForMaskedLM",
        "ModernBertConfig",
        _TEXT | TOKENS | {"cls_token_id": 0, "sep_token_id": 1, "local_attention": 4, "reference_compile": False},
        text,
        **_ENCODER,
    ),
    "esm": Kind(
        "EsmForMaskedLM",
        "EsmConfig",
        _BERT | {"mask_token_id": 3, "position_embedding_type": "rotary", "token_dropout": True},
        text,
        **_ENCODER,
    ),
    "vit": Kind("ViTForImageClassification", "ViTConfig", _IMAGE, image, causal=(False,) * LAYERS),
    "deit": Kind("DeiTForImageClassification", "DeiTConfig", _IMAGE, image, causal=(False,) * LAYERS),
    "clip": Kind(
        "CLIPModel",
        "CLIPConfig",
        _CLIP,
        image_and_text,
        "logits_per_image",
        2 * LAYERS,
        causal=(True,) * LAYERS + (False,) * LAYERS,
    ),
    "whisper": Kind(
        "WhisperForConditionalGeneration",
        "WhisperConfig",
        _BART | {"num_mel_bins": 8, "max_source_positions": 12, "max_target_positions": 48},
        spectrogram,
        kept=LAYERS,
        **_TWO,
    ),
    "wav2vec2": Kind(
        "Wav2Vec2ForCTC",
        "Wav2Vec2Config",
        _SOUND
        | {"num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2, "num_feat_extract_layers": 2}
        | {"feat_extract_norm": "layer", "do_stable_layer_norm": True, "apply_spec_augment": False}
        | {"hidden_dropout": 0.0, "attention_dropout": 0.0, "final_dropout": 0.0, "feat_proj_dropout": 0.0}
        | {"layerdrop": 0.0, "activation_dropout": 0.0},
        sound,
        causal=(False,) * LAYERS,
        options={"l_max": 30},
    ),
    "bart": Kind(
        "BartForConditionalGeneration",
        "BartConfig",
        _BART | {"max_position_embeddings": 48, "forced_eos_token_id": None},
        two_texts,
        kept=LAYERS,
        padded=_RIGHT,
        generates=True,
        **_TWO,
    ),
    "t5": Kind(
        "T5ForConditionalGeneration",
        "T5Config",
        {"vocab_size": VOCAB, "d_model": D, "d_kv": 4, "d_ff": 2 * D, "num_layers": LAYERS, "num_heads": M}
        | {"dropout_rate": 0.0, "decoder_start_token_id": 3}
        | TOKENS,
        two_texts,
        kept=LAYERS,
        padded=_BOTH,
        options={"l_max": 48},
        generates=True,
        **_TWO,
    ),
}
GENERATING = [name for name, kind in KINDS.items() if kind.generates]


def padding(side: str) -> tuple[Tensor, Tensor]:
    """The (3, L) attention mask, 1 = keep, and positions that count what is kept."""
    at, size = torch.arange(L), torch.tensor(SIZES)[:, None]
    mask = (at < size if side == "right" else at >= L - size).long()
    return mask, (mask.cumsum(1) - 1).clamp_min(0)
