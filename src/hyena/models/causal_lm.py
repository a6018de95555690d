"""Causal language model of Hyena, attention or any other mixer: token ids in, logits out.

Dimensions: B batch, L length, D channels (d_model), V vocabulary.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hyena import mixers
from hyena.mixers.masks import keep_from_tokenizer
from hyena.models import options
from hyena.models.blocks import Block, check_mlp
from hyena.models.config import ModelConfig, with_names
from hyena.models.decoder import Decoder, learned_positions
from hyena.models.initial import small_init
from hyena.models.sharding import whole_parameters

# Targets with this value are not predicted: F.cross_entropy's own default.
IGNORED = -100


@dataclasses.dataclass(frozen=True)
class CausalLMConfig(ModelConfig):
    """What a :class:`CausalLM` is built from; ``to_dict`` and ``from_dict`` are for checkpoints.

    Args:
        vocab_size: V.
        l_max: longest input.
        d_model: D.
        num_layers: number of blocks.
        mixer: the name of a class in ``hyena.mixers``, or a class or function of one's own (which cannot be saved),
            called with ``(d_model, l_max, **mixer_options)``, and ``device`` and ``dtype`` if it takes them.
        mixer_options: its keywords, plain values. A filter is a dict with the name of a class in ``hyena.filters`` and
            its keywords: ``{"class": "HyenaFilter", "width": 32}``.
        d_inner: inner width of the MLPs; as :class:`hyena.models.Block` has it if missing.
        dropout: of the residual branches and the embedding.
        tie_embeddings: the output layer's weight is the embedding's.
        gradient_checkpointing: in training, keep only the blocks' inputs and compute the rest again in the backward
            pass.
        mlp: ``"swiglu"``, ``"geglu"``, ``"gelu"`` or ``"gelu_tanh"``, see :class:`hyena.models.Block`. The gated ones
            have the same number of weights and learn more from them (docs/results.md); the published Hyena models
            have GELU.
    """

    vocab_size: int
    l_max: int
    d_model: int = 128
    num_layers: int = 4
    mixer: str | Callable[..., nn.Module] = "HyenaOperator"
    mixer_options: dict[str, Any] = dataclasses.field(default_factory=dict)
    d_inner: int | None = None
    dropout: float = 0.0
    tie_embeddings: bool = True
    gradient_checkpointing: bool = False
    mlp: str = "swiglu"

    def __post_init__(self) -> None:
        """Checks the values that no layer checks, and names exported classes.

        Raises:
            ValueError: an unknown mixer, MLP or option, a module instead of a class, a size below 1.
        """
        self._check_sizes("vocab_size", "l_max", "d_model", "num_layers")
        if self.d_inner is not None:
            self._check_sizes("d_inner")
        self._check_flags("tie_embeddings", "gradient_checkpointing")
        self._check_probabilities("dropout")
        check_mlp(self.mlp)
        if not isinstance(self.mixer_options, dict):
            raise ValueError(f"mixer_options must be a dict of keywords, got {self.mixer_options!r}")
        if modules := [k for k, v in {"mixer": self.mixer, **self.mixer_options}.items() if isinstance(v, nn.Module)]:
            raise ValueError(f"{', '.join(modules)}: a module would be shared by all layers; give its class")
        if (found := options.named(self.mixer, mixers, mixers.Mixer)) is not None:
            object.__setattr__(self, "mixer", found[0])
            object.__setattr__(self, "mixer_options", {**found[1], **self.mixer_options})
        object.__setattr__(self, "mixer_options", {k: options.plain(v) for k, v in self.mixer_options.items()})
        self.mixer_factory()

    def mixer_factory(self) -> Callable[..., nn.Module]:
        """Returns what builds the mixer of a block, called with ``(d_model, l_max)``, ``device`` and ``dtype``.

        Raises:
            ValueError: an unknown mixer, filter or option, with those there are.
        """
        factory = options.mixer_factory(self.mixer)
        keywords = {name: options.resolve(value) for name, value in self.mixer_options.items()}
        options.check_options(factory, keywords)
        return functools.partial(factory, **keywords)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> CausalLMConfig:
        """Returns the config that :meth:`to_dict` was called on; also that of version 0.1's ``HyenaLMConfig``.

        Without ``mlp`` it was saved when all models had GELU.
        """
        if values.get("mixer") in ("hyena", "attention"):
            values = _from_first_version(values)
        return super().from_dict({"mlp": "gelu", **values})


def _from_first_version(values: dict[str, Any]) -> dict[str, Any]:
    """The config of a ``HyenaLMConfig``, which had options of Hyena and of attention side by side."""
    values = dict(values)
    operator, inner = dict(values.pop("operator", {})), dict(values.pop("filter", {}))
    heads, of = values.pop("num_heads", 4), "a HyenaLMConfig"
    if values.pop("mixer") == "attention":
        return {
            **values,
            "mixer": "Attention",
            "mixer_options": {"num_heads": heads, "dropout": values.get("dropout", 0.0)},
        }
    for before, now in (("filter_order", "width"), ("emb_dim", "emb_dim")):
        if before in operator:
            inner = with_names({f"operator.{before}": operator.pop(before), **inner}, {f"operator.{before}": now}, of)
    operator = with_names(operator, {"short_filter_order": "short_taps"}, of)
    if inner:
        operator["filter"] = {"class": "HyenaFilter", **inner}
    return {**values, "mixer": "HyenaOperator", "mixer_options": operator}


class CausalLM(Decoder):
    """Embedding, pre-norm blocks, LayerNorm, output layer.

    Hyena needs no positions: its filters know them. With mixers that need them, as attention, learned positions are
    added to the embedding.
    """

    norm: nn.LayerNorm
    head: nn.Linear

    def __init__(
        self, config: CausalLMConfig, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__()
        at: dict[str, Any] = {"device": device, "dtype": dtype}
        c = self.config = config
        mixer = c.mixer_factory()
        self.embedding = nn.Embedding(c.vocab_size, c.d_model, **at)
        self.register_module("positions", None)  # its place among the parameters, which optimizers number
        self.dropout = nn.Dropout(c.dropout)
        self.blocks = nn.ModuleList(
            Block(
                options.build(mixer, c.d_model, c.l_max, **at),
                c.d_model,
                mlp=c.mlp,
                d_inner=c.d_inner,
                dropout=c.dropout,
                **at,
            )
            for _ in range(c.num_layers)
        )
        self.positions = learned_positions(self.blocks, c.l_max, c.d_model, **at)
        self.norm = nn.LayerNorm(c.d_model, **at)
        self.head = nn.Linear(c.d_model, c.vocab_size, bias=False, **at)
        self.tie_embeddings()
        self._reset_own_parameters()

    def reset_parameters(self) -> None:
        """Initialises every parameter again, also those that ``to_empty`` has left without values, sharded or not."""
        for block in cast("list[Block]", self.blocks):
            with whole_parameters(block, write=True):
                block.reset_parameters()
        self.norm.reset_parameters()
        self.tie_embeddings()
        self._reset_own_parameters()

    def _reset_own_parameters(self) -> None:
        small_init(self.blocks, (self.embedding, self.positions, self.head), self.config.d_model)

    def loss(
        self,
        tokens: Tensor,
        targets: Tensor,
        mask: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        max_seqlen: int | None = None,
    ) -> Tensor:
        """Computes the mean cross-entropy of the model's predictions, in nats.

        A model that is wrapped (``DistributedDataParallel``, ``torch.compile``) is called through its wrapper:
        ``next_token_loss(wrapped(tokens), targets)``.

        Args:
            tokens, mask, cu_seqlens, max_seqlen: as for :meth:`forward`.
            targets: ``(B, L)`` int64, the token that follows each one; -100 where none is to be predicted.

        Returns:
            A scalar in float32 or float64, as :func:`next_token_loss` says.
        """
        if tokens.dim() != 2 or targets.shape != tokens.shape:
            raise ValueError(f"tokens and targets must be (B, L), got {tuple(tokens.shape)} and {tuple(targets.shape)}")
        return next_token_loss(self(tokens, mask, cu_seqlens, max_seqlen), targets, mask)


def next_token_loss(logits: Tensor, targets: Tensor, mask: Tensor | None = None) -> Tensor:
    """Computes the mean cross-entropy in nats: ``F.cross_entropy(logits[keep], targets[keep])``.

    Args:
        logits: ``(B, L, V)``.
        targets: ``(B, L)`` int64, the token that follows each one; -100 where none is to be predicted.
        mask: ``(B, L)``, True or 1 = keep: targets at other positions do not count.

    Returns:
        A scalar in float64 for float64 logits, else in float32, which the sum over the vocabulary needs.

    Raises:
        ValueError: shapes that do not fit.
    """
    if logits.dim() != 3 or targets.shape != logits.shape[:2]:
        raise ValueError(
            f"logits must be (B, L, V) and targets (B, L), got {tuple(logits.shape)} and {tuple(targets.shape)}"
        )
    if mask is not None:
        targets = targets.masked_fill(~keep_from_tokenizer(mask, targets.shape), IGNORED)
    flat = logits.flatten(0, 1)
    flat = flat if flat.dtype == torch.float64 else flat.float()
    return F.cross_entropy(flat, targets.flatten(), ignore_index=IGNORED)
