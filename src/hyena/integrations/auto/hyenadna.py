"""HyenaDNA for ``transformers``: its published ``-hf`` folders, read and written without their code.

Dimensions: L length, V vocabulary, padded to a multiple of 8.
"""

from __future__ import annotations

import copy
import dataclasses
import math
import os
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationConfig

from hyena.checkpoints.hyenadna import load_hyenadna
from hyena.checkpoints.hyenadna_save import released_form
from hyena.checkpoints.safari.config import Positions
from hyena.checkpoints.safari.operator import ReleasedOperator
from hyena.filters import LearnedEncoding
from hyena.integrations.auto import folders
from hyena.integrations.auto.base import HyenaBackbone, HyenaLayer, HyenaPreTrainedModel
from hyena.integrations.auto.heads import (
    HyenaForCausalLM,
    HyenaForSequenceClassification,
    HyenaForTokenClassification,
)
from hyena.integrations.auto.hyenadna_config import HyenaDNAConfig
from hyena.models.hyenadna import HyenaDNA

# What the layer of classes is called, here and in a published folder.
_CLASSES = ("score.weight", "score.bias")


class HyenaDNAPreTrainedModel(HyenaPreTrainedModel):
    """Base of the HyenaDNA models: weights on disk have their published names and layout, weights in memory ours.

    What a folder holds goes through :func:`hyena.checkpoints.load_hyenadna` and what is saved through
    :func:`hyena.checkpoints.save_hyenadna`, with their checks.
    """

    config_class = HyenaDNAConfig

    def __init__(self, config: Any, **build: Any) -> None:
        super().__init__(config, **build)
        self.register_load_state_dict_pre_hook(_take_released)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """Loads a folder, or a model of the Hub; keywords as for any model of transformers."""
        if pretrained_model_name_or_path is None:
            return super().from_pretrained(None, *args, **kwargs)
        where, kwargs = folders.split(kwargs)
        name = pretrained_model_name_or_path
        config = kwargs.pop("config", None)
        if not isinstance(config, HyenaDNAConfig):
            source = name if config is None else config
            asked = [key for key in ("dtype", "torch_dtype") if key in kwargs]
            dtype: dict[str, Any] = {key: kwargs.pop(key) for key in asked}  # not the config's
            config, kwargs = HyenaDNAConfig.from_pretrained(source, return_unused_kwargs=True, **where, **kwargs)
            kwargs |= dtype
        state, mixers = _from_released(folders.weights(name, where), config)
        if not issubclass(cls, HyenaBackbone):
            state = {key if key in _HEADS else f"model.{key}": t for key, t in state.items()}
        expected = _HEADS_OF.get(next((c for c in cls.__mro__ if c in _HEADS_OF), cls), ())
        if config.tie_word_embeddings:  # then the embedding's is enough, and the first releases would not tie two
            expected = tuple(key for key in expected if key != "lm_head.weight")
        state = {key: t for key, t in state.items() if key not in _HEADS or key in expected}
        frozen = [[key for key, p in mixer.named_parameters() if not p.requires_grad] for mixer in mixers]
        found = super().from_pretrained(None, *args, config=config, state_dict=state, mixers=mixers, **kwargs)
        model = found[0] if isinstance(found, tuple) else found
        for layer, keys in zip(model.backbone_model.blocks, frozen, strict=True):
            for key in keys:
                layer.mixer.get_parameter(key).requires_grad_(False)
        model.name_or_path = model.config.name_or_path = str(name)
        if model.can_generate() and (generation := folders.find(name, "generation_config.json", where)):
            model.generation_config = GenerationConfig.from_pretrained(os.path.dirname(generation))
        return found

    def save_pretrained(
        self, save_directory: Any, is_main_process: bool = True, state_dict: Any = None, *args: Any, **kwargs: Any
    ) -> None:
        """Writes a folder as the published ones are, which ``load_hyenadna`` reads as well.

        Raises:
            ValueError: what the published format cannot say, as :func:`hyena.checkpoints.save_hyenadna`.
        """
        if getattr(self, "_hf_peft_config_loaded", False):  # then only the adapter is saved
            super().save_pretrained(save_directory, is_main_process, state_dict, *args, **kwargs)
            return
        if getattr(self, "hf_quantizer", None) is not None:
            raise ValueError(
                "the published format of HyenaDNA has no quantised weights: quantise when loading, and save an adapter"
            )
        config, tensors = self.released(state_dict)
        for name, value in config.items():
            if name in self.config.released() and name != "tie_word_embeddings":
                setattr(self.config, name, value)
        super().save_pretrained(save_directory, is_main_process, tensors, *args, **kwargs)

    def released(self, state_dict: Mapping[str, Tensor] | None = None) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Settings and tensors by their published names; of ``state_dict``, if given, in place of the weights here."""
        own = copy.deepcopy(self)
        if state_dict is not None:
            own.load_state_dict(dict(state_dict))
        classes = {key: t.detach().cpu().clone() for key, t in own.state_dict().items() if key in _CLASSES}
        config, tensors = released_form(own.to_hyena())
        return config, {**tensors, **classes}

    def to_hyena(self) -> HyenaDNA:
        """A :class:`hyena.models.HyenaDNA` of this model's modules; without the layer of classes, if there is one."""
        head = "lm" if isinstance(self, HyenaForCausalLM) else None
        config, _ = self.config.read(head)
        config = dataclasses.replace(config, tie_embeddings=self.config.tie_word_embeddings)
        part = self.backbone_model
        layers: list[Any] = list(part.blocks)
        model = HyenaDNA(config, [layer.mixer for layer in layers], device="meta")
        model.embedding, model.norm, model.dropout = part.embedding, part.norm, part.dropout
        for block, layer in zip(model.blocks, layers, strict=True):
            block.norm1, block.norm2, block.mlp = layer.norm1, layer.norm2, layer.mlp
        if head == "lm":
            model.head = self.get_output_embeddings()
        return model.train(self.training)

    @property
    def backbone_model(self) -> HyenaDNAModel:
        """The model without a head."""
        return self if isinstance(self, HyenaDNAModel) else self.model

    def resize_token_embeddings(
        self, new_num_tokens: int | None = None, pad_to_multiple_of: int | None = None, mean_resizing: bool = True
    ) -> nn.Embedding:
        """Resizes the embedding to a multiple of the config's ``pad_vocab_size_multiple``."""
        multiple = pad_to_multiple_of or self.config.pad_vocab_size_multiple
        if multiple % self.config.pad_vocab_size_multiple:
            raise ValueError(
                f"pad_to_multiple_of={multiple} is no multiple of "
                f"pad_vocab_size_multiple={self.config.pad_vocab_size_multiple}"
            )
        if new_num_tokens is None:
            return self.get_input_embeddings()  # type: ignore[return-value]
        found = super().resize_token_embeddings(new_num_tokens, multiple, mean_resizing)
        self.config.vocab_size = new_num_tokens
        return found


class HyenaDNAModel(HyenaDNAPreTrainedModel, HyenaBackbone):
    """HyenaDNA without a head."""

    def build(self, mixers: list[nn.Module] | None = None) -> None:
        """See the base.

        Args:
            mixers: one for each block, in place of those that the config describes.
        """
        c, settings = self.config.read(None)
        if mixers is None:
            operator = ReleasedOperator(settings, "standalone", goes_on=True)
            mixers = [_new(operator) for _ in range(c.num_layers)]
        for mixer in mixers:
            mixer.to(torch.get_default_dtype())  # that of the model around them
        std = self.config.initial_std
        self.embedding = nn.Embedding(c.padded_vocab_size, c.d_model)
        self.register_module("positions", None)
        self.dropout = nn.Dropout(c.embed_dropout)
        self.blocks = nn.ModuleList(
            HyenaLayer(
                mixer,
                c.d_model,
                d_inner=c.d_inner,
                dropout=c.dropout,
                mlp="gelu_tanh",
                norm_eps=c.norm_eps,
                layer_idx=i,
                std=(std, std / math.sqrt(2 * c.num_layers)),
            )
            for i, mixer in enumerate(mixers)
        )
        self.norm = nn.LayerNorm(c.d_model, c.norm_eps)

    def residual(self, x: Tensor) -> Tensor:
        """See the base."""
        return x.to(torch.promote_types(x.dtype, torch.float32)) if self.config.residual_in_fp32 else x


class HyenaDNAForCausalLM(HyenaDNAPreTrainedModel, HyenaForCausalLM):
    """HyenaDNA with logits for the next token; those beyond the vocabulary are never written."""

    backbone = HyenaDNAModel

    def __init__(self, config: Any, **build: Any) -> None:
        super().__init__(config, **build)
        rows = self.lm_head.out_features
        if rows > config.vocab_size:
            self.generation_config.suppress_tokens = list(range(config.vocab_size, rows))

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """See ``GenerationMixin``."""
        size = self.config.vocab_size
        # The first releases take logits to be as wide as the vocabulary, and beams apart by it.
        self.config.vocab_size = self.lm_head.out_features
        try:
            return super().generate(*args, **kwargs)
        finally:
            self.config.vocab_size = size


class HyenaDNAForSequenceClassification(HyenaDNAPreTrainedModel, HyenaForSequenceClassification):
    """HyenaDNA with logits of classes for each row, from its last kept position."""

    backbone = HyenaDNAModel
    score_bias = False


class HyenaDNAForTokenClassification(HyenaDNAPreTrainedModel, HyenaForTokenClassification):
    """HyenaDNA with logits of classes for each token."""

    backbone = HyenaDNAModel


_HEADS = ("lm_head.weight", *_CLASSES)
_HEADS_OF: dict[type, tuple[str, ...]] = {
    HyenaDNAForCausalLM: ("lm_head.weight",),
    HyenaDNAForSequenceClassification: ("score.weight",),
    HyenaDNAForTokenClassification: _CLASSES,
}


def _new(operator: ReleasedOperator) -> nn.Module:
    """A mixer of a new model, on the device where tensors are made."""
    mixer = operator.build(Positions.COMPUTED, torch.get_default_dtype())
    device = torch.get_default_device()
    if device.type != "meta":
        mixer.to_empty(device=device).reset_parameters()
    operator.freeze(mixer, Positions.COMPUTED)
    return mixer


def _from_released(
    tensors: Mapping[str, Tensor], config: HyenaDNAConfig, learned: bool | None = None
) -> tuple[dict[str, Tensor], list[nn.Module]]:
    """Weights by our names, ``blocks.0.…`` and heads, and mixers to hold them, on the meta device."""
    classes = {key: t for key, t in tensors.items() if key in _CLASSES}
    rest = {key: t for key, t in tensors.items() if key not in _CLASSES}
    head = "lm" if "lm_head.weight" in rest or config.tie_word_embeddings else None
    model = load_hyenadna(rest, config.released(), head=head, learned_encoding=learned)
    state = dict(model.state_dict())
    if head == "lm":
        state["lm_head.weight"] = state.pop("head.weight")
    mixers: list[Any] = [block.mixer.to("meta") for block in model.blocks]
    return {**state, **classes}, mixers


def _take_released(model: Any, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
    """Lets ``load_state_dict`` take published names, as ``Trainer`` asks of it when it goes on from a checkpoint."""
    if not any(key.startswith((f"{prefix}hyena.backbone.", f"{prefix}backbone.")) for key in state_dict):
        return
    given = {key.removeprefix(prefix): state_dict.pop(key) for key in list(state_dict) if key.startswith(prefix)}
    learned = isinstance(model.backbone_model.blocks[0].mixer.conv.filter.encoding, LearnedEncoding)
    state, _ = _from_released(given, model.config, learned)
    inner = "" if isinstance(model, HyenaBackbone) else "model."
    own = model.state_dict().keys()
    state = {key if key in _HEADS else inner + key: t for key, t in state.items()}
    state_dict.update({prefix + key: t for key, t in state.items() if key not in _HEADS or key in own})
