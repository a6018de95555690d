"""Heads over the decoder: next tokens, masked tokens, classes of sequences and of tokens.

Dimensions: B batch, L length, V vocabulary, D channels.
"""

from __future__ import annotations

import functools
from abc import abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import Cache, GenerationMixin
from transformers.modeling_outputs import (
    CausalLMOutputWithPast,
    MaskedLMOutput,
    SequenceClassifierOutput,
    TokenClassifierOutput,
)
from transformers.utils.generic import can_return_tuple

from hyena import ops
from hyena.integrations.auto.base import (
    HyenaBackbone,
    HyenaModel,
    HyenaPreTrainedModel,
    cache_of,
    one_cache,
    with_cache,
)
from hyena.integrations.auto.config import HyenaConfig
from hyena.models import CausalLM, CausalLMConfig, Decoder
from hyena.models.pooling import pool

IGNORED = -100  # labels that do not count, as everywhere in transformers


def _like_generation_mixin(method: Any) -> Any:
    """Gives a method the signature in which ``generate`` looks for what a model takes."""
    return functools.wraps(GenerationMixin.prepare_inputs_for_generation)(method)


class _WithBackbone(HyenaPreTrainedModel):
    """Base of the heads: a backbone of the family's class under ``model``."""

    backbone: ClassVar[type[HyenaBackbone]] = HyenaModel

    def __init__(self, config: Any, **build: Any) -> None:
        super().__init__(config)
        self.model = self.backbone(self.config, **build)
        self.config = self.model.config
        self.add_head()
        self.post_init()

    @abstractmethod
    def add_head(self) -> None:
        """Makes the layer of the head."""

    def get_input_embeddings(self) -> nn.Module:
        """The embedding."""
        return self.model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replaces the embedding."""
        self.model.set_input_embeddings(value)


class _WithOutputLayer(_WithBackbone):
    """Base of the heads that predict tokens, with an output layer that may be the embedding."""

    _tied_weights_keys = {"lm_head.weight": "model.embedding.weight"}  # noqa: RUF012  # as in the base

    def add_head(self) -> None:
        """See the base."""
        table = self.model.embedding
        self.lm_head = nn.Linear(table.embedding_dim, table.num_embeddings, bias=False)

    def get_output_embeddings(self) -> nn.Module:
        """The output layer."""
        return self.lm_head

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        """Replaces the output layer."""
        self.lm_head = new_embeddings


class HyenaForCausalLM(_WithOutputLayer, GenerationMixin):
    """The decoder with logits for the next token; it generates from states."""

    def __init__(self, config: Any, **build: Any) -> None:
        if config.causal is False:
            raise ValueError(f"a {type(self).__name__} predicts the next token, and causal=False sees it")
        super().__init__(config, **build)

    def to_hyena(self) -> Decoder:
        """Returns a :class:`hyena.models.CausalLM` with copies of the weights."""
        c = self.config
        config = CausalLMConfig(
            c.vocab_size, c.l_max, c.d_model, c.num_layers, c.mixer, {**c.mixer_options}, c.d_inner, c.dropout,
            tie_embeddings=c.tie_word_embeddings, mlp=c.mlp,
        )  # fmt: skip
        state = {key.removeprefix("model."): t for key, t in self.state_dict().items() if key != "lm_head.weight"}
        model = CausalLM(config, device=self.device, dtype=self.dtype)
        model.load_state_dict({**state, "head.weight": self.lm_head.weight})
        return model.train(self.training)

    @classmethod
    def from_hyena(cls, model: CausalLM) -> HyenaForCausalLM:
        """Returns a model with copies of the weights of a :class:`hyena.models.CausalLM`, to save or to train on.

        Raises:
            ValueError: a mixer that a saved config cannot name.
        """
        values = model.config.to_dict()
        values.pop("gradient_checkpointing")
        tied = values.pop("tie_embeddings")
        config = HyenaConfig(**values, tie_word_embeddings=tied)
        made: Any = cls(config)
        made.to(device=model.device, dtype=model.embedding.weight.dtype)
        state = {f"model.{key}": t for key, t in model.state_dict().items() if key != "head.weight"}
        made.load_state_dict({**state, "lm_head.weight": model.head.weight})
        return made.train(model.training)

    @_like_generation_mixin
    def prepare_inputs_for_generation(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        # Releases before 5.3 number the positions for models that cannot count.
        prepare: Any = super().prepare_inputs_for_generation
        inputs = prepare(*args, **kwargs)
        inputs.pop("cache_position", None)
        return inputs

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        num_items_in_batch: Tensor | int | None = None,
        cache: Cache | None = None,
    ) -> CausalLMOutputWithPast:
        """Computes logits ``(B, L, V)`` for the token after each one; arguments as :meth:`HyenaModel.forward`.

        Args:
            input_ids, attention_mask, past_key_values, cache, inputs_embeds, use_cache: see there.
            output_hidden_states, output_attentions: see there.
            labels: ``(B, L)``, the ``input_ids`` again (they are shifted here), -100 where nothing is to be predicted.
                Those at padding, and right after it, do not count either.
            logits_to_keep: only the logits of so many last positions (0: all), or of these positions.
            num_items_in_batch: what the loss is divided by, in place of the number of its terms.
        """
        out = self.model(
            input_ids,
            attention_mask=attention_mask,
            cache=one_cache(past_key_values, cache),
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
        )
        some = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        if labels is not None and (isinstance(some, Tensor) or some.start != 0):
            raise ValueError(f"logits_to_keep={logits_to_keep} with labels: the loss needs all logits")
        logits = ops.linear(out.last_hidden_state[:, some], self.lm_head)
        loss = None
        if labels is not None:
            if attention_mask is not None:
                keep = attention_mask[:, -labels.size(1) :] != 0
                known = keep.clone()
                known[:, 1:] &= keep[:, :-1]
                labels = labels.masked_fill(~known, IGNORED)
            loss = self.loss_function(
                logits=logits, labels=labels, vocab_size=logits.size(-1), num_items_in_batch=num_items_in_batch
            )
        past = cache_of(out)
        return with_cache(CausalLMOutputWithPast, past, loss=loss, logits=logits, hidden_states=out.hidden_states)


class HyenaForMaskedLM(_WithOutputLayer):
    """The two-sided decoder with logits for the token at each position."""

    two_sided = True

    def __init__(self, config: Any, **build: Any) -> None:
        if config.causal is True:
            raise ValueError(f"a {type(self).__name__} sees both sides of a masked token: pass causal=False or None")
        super().__init__(config, **build)

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        num_items_in_batch: Tensor | int | None = None,
    ) -> MaskedLMOutput:
        """Computes logits ``(B, L, V)`` for each token; arguments as :meth:`HyenaModel.forward`.

        Args:
            input_ids, attention_mask, inputs_embeds, output_hidden_states, output_attentions: see there.
            labels: ``(B, L)``, the token at each position, -100 (and padding) where none is to be predicted.
            num_items_in_batch: what the loss is divided by, in place of the number of its terms.
        """
        out = self.model(
            input_ids,
            attention_mask=attention_mask,
            inputs_embeds=inputs_embeds,
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
        )
        logits = ops.linear(out.last_hidden_state, self.lm_head)
        loss = None
        if labels is not None:
            loss = self.loss_function(
                logits=logits,
                labels=_without_padding(labels, attention_mask),
                vocab_size=logits.size(-1),
                num_items_in_batch=num_items_in_batch,
            )
        return MaskedLMOutput(loss=loss, logits=logits, hidden_states=out.hidden_states)


class _WithClasses(_WithBackbone):
    """Base of the heads with a layer of classes."""

    score_bias: ClassVar[bool] = True

    def add_head(self) -> None:
        """See the base."""
        self.num_labels = self.config.num_labels or 0
        self.dropout = nn.Dropout(self.config.classifier_dropout)
        width: Any = self.config.d_model
        self.score = nn.Linear(width, self.num_labels, bias=self.score_bias)


class HyenaForSequenceClassification(_WithClasses):
    """The decoder with logits of classes for each row, from its last kept position or their mean."""

    accepts_loss_kwargs = False  # the loss is a mean over rows

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
    ) -> SequenceClassifierOutput:
        """Computes logits ``(B, classes)``; arguments as :meth:`HyenaModel.forward`.

        Args:
            input_ids, attention_mask, inputs_embeds, output_hidden_states, output_attentions: see there. Without a
                mask, tokens that are the config's ``pad_token_id`` are not read from, but do take part in the mixing.
            labels: ``(B,)`` classes; ``(B, classes)`` of several classes at once, or numbers: ``problem_type``.
        """
        if input_ids is not None:
            self.warn_if_padding_and_no_attention_mask(input_ids, attention_mask)
        out = self.model(
            input_ids,
            attention_mask=attention_mask,
            inputs_embeds=inputs_embeds,
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
        )
        keep = attention_mask
        if keep is None and input_ids is not None and self.config.pad_token_id is not None:
            keep = input_ids != self.config.pad_token_id
        pooled = pool(out.last_hidden_state, keep, self.config.pooling)
        logits = self.score(self.dropout(pooled))
        loss = None
        if labels is not None:
            loss = self.loss_function(labels=labels, pooled_logits=logits, config=self.config)
        return SequenceClassifierOutput(loss=loss, logits=logits, hidden_states=out.hidden_states)


class HyenaForTokenClassification(_WithClasses):
    """The decoder with logits of classes for each token."""

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        num_items_in_batch: Tensor | int | None = None,
    ) -> TokenClassifierOutput:
        """Computes logits ``(B, L, classes)``; arguments as :meth:`HyenaModel.forward`.

        Args:
            input_ids, attention_mask, inputs_embeds, output_hidden_states, output_attentions: see there.
            labels: ``(B, L)`` classes, -100 (and padding) where there is none.
            num_items_in_batch: what the loss is divided by, in place of the number of its terms.
        """
        out = self.model(
            input_ids,
            attention_mask=attention_mask,
            inputs_embeds=inputs_embeds,
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
        )
        logits = self.score(self.dropout(out.last_hidden_state))
        loss = None
        if labels is not None:
            labels = _without_padding(labels, attention_mask)
            loss = self.loss_function(logits, labels, self.config, num_items_in_batch=num_items_in_batch)
        return TokenClassifierOutput(loss=loss, logits=logits, hidden_states=out.hidden_states)


def _without_padding(labels: Tensor, mask: Tensor | None) -> Tensor:
    return labels if mask is None else torch.where(mask != 0, labels, IGNORED)
