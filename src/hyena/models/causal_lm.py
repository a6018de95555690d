"""Causal language model of Hyena, attention or any other mixer: token ids in, logits out.

Dimensions: B batch, L length, D channels (d_model), V vocabulary.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hyena.filters import HyenaFilter
from hyena.mixers import Attention, HyenaOperator
from hyena.mixers.masks import keep_from_tokenizer
from hyena.models.blocks import Block
from hyena.models.config import ModelConfig
from hyena.models.decoder import Decoder

# Targets with this value are not predicted: F.cross_entropy's own default.
IGNORED = -100


@dataclasses.dataclass(frozen=True)
class CausalLMConfig(ModelConfig):
    """What a :class:`CausalLM` is built from; :meth:`to_dict` and :meth:`from_dict` are for checkpoints.

    Args:
        vocab_size: V.
        l_max: longest input. It is part of what a filter means (time runs to 1 at ``l_max``), so a model is trained and
            used with one value.
        d_model: D.
        num_layers: number of blocks.
        mixer: ``"hyena"``, or ``"attention"``: the same model with :class:`hyena.mixers.Attention` and learned
            positions.
        num_heads: of the attention. Hyena's own heads are an option in ``operator``.
        d_inner: inner width of the MLP, ``4 * D`` if missing.
        dropout: of the residual branches, the embedding and the attention weights.
        tie_embeddings: the output layer's weight is the embedding's.
        gradient_checkpointing: in training, keep only the blocks' inputs and compute the rest again in the backward
            pass.
        operator: keywords for :class:`hyena.HyenaOperator`.
        filter: keywords for the :class:`hyena.HyenaFilter` of each operator (``freq``, ``shift``, …), instead of
            ``emb_dim`` and ``filter_order`` in ``operator``.
    """

    vocab_size: int
    l_max: int
    d_model: int = 128
    num_layers: int = 4
    mixer: str = "hyena"
    num_heads: int = 4
    d_inner: int | None = None
    dropout: float = 0.0
    tie_embeddings: bool = True
    gradient_checkpointing: bool = False
    operator: dict[str, Any] = dataclasses.field(default_factory=dict)
    filter: dict[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        """Checks the numbers that no layer checks.

        Raises:
            ValueError: an unknown mixer, a size below 1, or options that contradict each other.
        """
        if self.mixer not in ("hyena", "attention"):
            raise ValueError(f"mixer must be 'hyena' or 'attention', got {self.mixer!r}")
        options = {**self.operator, **self.filter}
        if self.mixer == "attention" and options:
            raise ValueError(f"mixer='attention' has no Hyena operator that could take {sorted(options)}")
        if "filter" in self.operator or {"encoding", "ffn", "window"} & set(self.filter):
            raise ValueError("operator and filter take plain values; a module would be shared by all layers")
        both = sorted({"emb_dim", "filter_order"} & set(self.operator))
        if self.filter and both:
            raise ValueError(f"with options in filter, {both} of operator belong there too, as 'emb_dim' and 'width'")
        self._check_sizes("vocab_size", "l_max", "d_model", "num_layers")
        if self.d_inner is not None:
            self._check_sizes("d_inner")
        self._check_flags("tie_embeddings", "gradient_checkpointing")
        self._check_probabilities("dropout")


class CausalLM(Decoder):
    """Embedding, pre-norm blocks, LayerNorm, output layer.

    Hyena needs no positions: its filters know them. With attention, learned positions are added to the embedding.
    """

    head: nn.Linear

    def __init__(
        self, config: CausalLMConfig, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__()
        at: dict[str, Any] = {"device": device, "dtype": dtype}
        c = self.config = config
        self.embedding = nn.Embedding(c.vocab_size, c.d_model, **at)
        self.positions = nn.Embedding(c.l_max, c.d_model, **at) if c.mixer == "attention" else None
        self.dropout = nn.Dropout(c.dropout)
        self.blocks = nn.ModuleList(
            Block(_mixer(c, at), c.d_model, d_inner=c.d_inner, dropout=c.dropout, **at) for _ in range(c.num_layers)
        )
        self.norm = nn.LayerNorm(c.d_model, **at)
        self.head = nn.Linear(c.d_model, c.vocab_size, bias=False, **at)
        if c.tie_embeddings:
            self.head.weight = self.embedding.weight
        self._reset_own_parameters()

    @torch.no_grad()
    def _reset_own_parameters(self) -> None:
        # SmallInit (Nguyen and Salazar 2019, arXiv 1910.05895): about GPT-2's 0.02 at D = 768, and 0.056 at D = 128,
        # where 0.02 trains more slowly (validation loss 1.70 against 1.63 in the Shakespeare example with default
        # filters). What is added to the residual stream starts smaller by sqrt(2 num_layers), as in GPT-2.
        std = math.sqrt(2 / (5 * self.config.d_model))
        residual = std / math.sqrt(2 * self.config.num_layers)
        for table in (self.embedding, self.positions, self.head):
            if table is not None:
                nn.init.normal_(table.weight, std=std)
        for name, layer in self.blocks.named_modules():
            # The filters' own layers keep their initialisation, which gives them unit norm.
            if isinstance(layer, nn.Linear) and ".filter." not in name:
                nn.init.normal_(layer.weight, std=residual if name.endswith((".out_proj", ".fc2")) else std)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)

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
            A scalar, in float32 or float64: see :func:`next_token_loss`.
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
        A scalar, in float64 for float64 logits, else in float32: the sum over the vocabulary needs it.

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


def _mixer(c: CausalLMConfig, at: dict[str, Any]) -> nn.Module:
    if c.mixer == "attention":
        return Attention(c.d_model, c.l_max, num_heads=c.num_heads, dropout=c.dropout, **at)
    options = dict(c.operator)
    renamed = {"filter_order": "width", "emb_dim": "emb_dim"}
    inner = {renamed[name]: options.pop(name) for name in renamed if name in options}
    if "short_filter_order" in options:
        options["short_taps"] = options.pop("short_filter_order")
    return HyenaOperator(
        c.d_model, c.l_max, filter=functools.partial(HyenaFilter, **inner, **c.filter), **options, **at
    )
