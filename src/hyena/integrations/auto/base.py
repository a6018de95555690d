"""Hyena's decoder as a ``PreTrainedModel``: embedding, blocks and norm, with states in transformers' caches.

Dimensions: B batch, L new positions, S all positions, D channels.
"""

from __future__ import annotations

import copy
import dataclasses
import math
import warnings
from abc import abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import Cache, DynamicCache, PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.utils.generic import can_return_tuple

from hyena.integrations.adapters.transformers import keywords
from hyena.integrations.adapters.transformers.cache import history
from hyena.integrations.auto.config import HyenaConfig
from hyena.mixers.masks import keep_from_tokenizer
from hyena.models import Block, options
from hyena.models.decoder import learned_positions
from hyena.models.initial import init_linear_layers

# Filters keep float32 weights in a model of half precision, which they see to themselves; quantisers go by this.
_SINGLE = r"(.*\.)?filter\..*"

# What releases of transformers call a cache: the first before 5.20.
CACHES = ("past_key_values", "cache")
_CACHE = next(f.name for f in dataclasses.fields(BaseModelOutputWithPast) if f.name in CACHES)


def with_cache(kind: Any, cache: Cache | None, **fields: Any) -> Any:
    """Returns an output of transformers with a cache in it."""
    return kind(**{_CACHE: cache}, **fields)


def cache_of(output: Any) -> Cache | None:
    """Returns the cache in an output of transformers."""
    return getattr(output, _CACHE)


def one_cache(past_key_values: Cache | None, cache: Cache | None) -> Cache | None:
    """Returns the cache, by either name.

    Raises:
        ValueError: two of them.
    """
    if past_key_values is not None and cache is not None:
        raise ValueError("pass one cache, as cache= or as past_key_values=, which is its earlier name")
    if past_key_values is not None and _CACHE == "cache":
        warnings.warn("`past_key_values` is deprecated in transformers, pass `cache`", FutureWarning, stacklevel=4)
    return cache if past_key_values is None else past_key_values


class HyenaLayer(Block, GradientCheckpointingLayer):
    """A block that keeps its mixer's state in a cache of transformers.

    Args:
        *args: of :class:`hyena.models.Block`.
        layer_idx: its place in the cache.
        std: of its linear layers' initial weights, and of those that write to the residual stream.
        **kwargs: of :class:`hyena.models.Block`.
    """

    def __init__(self, *args: Any, layer_idx: int, std: tuple[float, float], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.layer_idx, self.std = layer_idx, std

    @property
    def _is_hf_initialized(self) -> bool:
        return self.__dict__.get("_initialized_by_transformers", False)

    @_is_hf_initialized.setter
    def _is_hf_initialized(self, value: bool) -> None:
        """Transformers says so after the layer's parts: then the mixer has started as mixers do on their own."""
        if value and not self._is_hf_initialized:
            init_linear_layers(self, *self.std)
        self.__dict__["_initialized_by_transformers"] = value

    def mix(self, u: Tensor, **mixing: Any) -> Tensor:
        """Calls the mixer, from the state in the cache if there is one.

        Args:
            u: ``(B, L, D)``.
            **mixing: ``mask`` ``(B, S)``; ``past_key_values``, a cache, with the ``attention_mask`` that ``mask`` was
                made from and whether something ``continues`` what comes now.
        """
        cache, mask = mixing.get("past_key_values"), mixing.get("mask")
        if cache is None:
            return self.mixer(u, mask=mask)
        past = history(cache, self.layer_idx)
        return past.extend(self.mixer, u, mask, mixing["attention_mask"], continues=mixing["continues"])


class HyenaPreTrainedModel(PreTrainedModel):
    """Base of the models here: how they are made, initialised, saved and loaded."""

    config_class: Any = HyenaConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["HyenaLayer"]  # noqa: RUF012  # as in the base
    _skip_keys_device_placement = list(CACHES)  # noqa: RUF012
    accepts_loss_kwargs = True
    # What the model does if the config does not say.
    two_sided: ClassVar[bool] = False

    def __init__(self, config: Any, **kwargs: Any) -> None:
        config.check()
        if config.causal is None and self.two_sided:
            config = copy.deepcopy(config)
            config.causal = False
        super().__init__(config, **kwargs)
        self._keep_in_fp32_modules = [_SINGLE]  # which quantisers leave alone

    @property
    def causal(self) -> bool:
        """Whether no position sees a later one."""
        return self.config.causal is not False

    def _init_weights(self, module: nn.Module) -> None:
        # Of a head: a layer of classes or tokens.
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=self.config.initial_std)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


class HyenaBackbone(HyenaPreTrainedModel):
    """Embedding, blocks and norm; subclasses say in :meth:`build` of which parts."""

    embedding: nn.Embedding
    positions: nn.Embedding | None
    dropout: nn.Dropout
    blocks: nn.ModuleList
    norm: nn.LayerNorm

    def __init__(self, config: Any, **build: Any) -> None:
        super().__init__(config)
        self.build(**build)
        self.gradient_checkpointing = False
        self.post_init()

    @abstractmethod
    def build(self) -> None:
        """Makes the parts."""

    def _init_weights(self, module: nn.Module) -> None:
        # Linear layers are initialised by the HyenaLayer around them, and mixers by themselves.
        if isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=self.config.initial_std)
        elif isinstance(module, nn.LayerNorm):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)

    def get_input_embeddings(self) -> nn.Module:
        """The embedding."""
        return self.embedding

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replaces the embedding."""
        self.embedding = value  # type: ignore[assignment]

    def residual(self, x: Tensor) -> Tensor:
        """The embedded tokens as the first block takes them."""
        return x

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        cache: Cache | None = None,
    ) -> BaseModelOutputWithPast:
        """Computes the normalised output of the last block.

        Args:
            input_ids: ``(B, L)``, the next tokens of each row.
            attention_mask: ``(B, S)``, 0 = padding, of the positions in the cache as well; padding and holes may be
                anywhere, and a row then gives what it gives without them.
            past_key_values: a ``DynamicCache``, from an earlier call.
            inputs_embeds: ``(B, L, D)`` in place of ``input_ids``.
            use_cache: whether to return a cache to go on with. If missing, the config's: then the first positions are
                computed as without one, and the state is made when something follows.
            output_hidden_states: whether to return the input of each block, and the normalised output of the last.
            output_attentions: there are none: True raises.
            cache: the name of ``past_key_values`` in later releases of transformers.

        Raises:
            ValueError: shapes that do not fit, more positions than ``l_max``, a cache of another kind.
        """
        asked = self.config.output_attentions if output_attentions is None else output_attentions
        keywords.refuse("output_attentions", asked, keywords.REFUSED["output_attentions"])
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("pass either input_ids or inputs_embeds")
        x = self.embedding(input_ids) if inputs_embeds is None else inputs_embeds
        if x.dim() != 3 or x.size(-1) != self.config.d_model:
            given = x.shape[:-1] if inputs_embeds is None else x.shape
            raise ValueError(f"expected input_ids (B, L) or inputs_embeds (B, L, {self.config.d_model}), got {given}")
        cache, continues = one_cache(past_key_values, cache), bool(use_cache)
        if use_cache is None:
            use_cache = cache is not None or (self.config.use_cache and not self.training and self.causal)
        elif use_cache and not self.causal:
            raise ValueError("use_cache=True: a two-sided model changes earlier outputs with every new position")
        if use_cache and cache is None:
            cache = DynamicCache()
        before = 0 if cache is None else history(cache, 0).length
        total = before + x.size(1)
        if total > self.config.l_max:
            raise ValueError(f"{before} positions and {x.size(1)} more are longer than l_max={self.config.l_max}")
        keep = None if attention_mask is None else self._keep(attention_mask, x.size(0), total)
        if self.positions is not None:
            x = x + self.positions(_count(keep, total, x.device)[..., before:])
        x = self.dropout(self.residual(x))
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        hidden: list[Tensor] = []
        for layer in self.blocks:
            hidden.append(x)
            x = layer(
                x,
                mask=keep,
                past_key_values=cache,
                attention_mask=attention_mask,
                continues=continues,
            )
        x = self.norm(x.to(self.norm.weight.dtype))
        states = (*hidden, x) if output_hidden_states else None
        return with_cache(BaseModelOutputWithPast, cache, last_hidden_state=x, hidden_states=states)

    def _keep(self, mask: Any, batch: int, total: int) -> Tensor:
        if not isinstance(mask, Tensor) or mask.shape != (batch, total):
            shape = tuple(mask.shape) if isinstance(mask, Tensor) else type(mask).__name__
            raise ValueError(
                f"attention_mask must be {(batch, total)}, 0 or False where a position of a row (those in the cache "
                f"included) is padding, got {shape}"
            )
        return keep_from_tokenizer(mask, torch.Size((batch, total)), floats=True)


class HyenaModel(HyenaBackbone):
    """The decoder without a head."""

    def build(self) -> None:
        """See the base."""
        c = self.config
        mixer = c.mixer_factory(causal=self.causal)
        self.embedding = nn.Embedding(c.vocab_size, c.d_model)
        self.dropout = nn.Dropout(c.dropout)
        self.blocks = nn.ModuleList(
            HyenaLayer(
                options.build(mixer, c.d_model, c.l_max),
                c.d_model,
                mlp=c.mlp,
                d_inner=c.d_inner,
                dropout=c.dropout,
                layer_idx=i,
                std=(c.initial_std, c.initial_std / math.sqrt(2 * c.num_layers)),
            )
            for i in range(c.num_layers)
        )
        self.positions = learned_positions(self.blocks, c.l_max, c.d_model)
        self.norm = nn.LayerNorm(c.d_model)


def _count(keep: Tensor | None, total: int, device: torch.device) -> Tensor:
    """The position of each token in its row, not counting padding: ``(S,)`` or ``(B, S)``."""
    if keep is None:
        return torch.arange(total, device=device)
    return (keep.cumsum(1) - 1).clamp_min(0)
