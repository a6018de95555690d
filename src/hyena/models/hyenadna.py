"""HyenaDNA: a stack of Hyena blocks over nucleotides (Nguyen et al. 2023, arXiv 2306.15794).

Dimensions: B batch, L length, D channels (d_model), V vocabulary, padded to a multiple of 8 in the released models.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from hyena.filters import HyenaFilter
from hyena.mixers import HyenaOperator
from hyena.models.blocks import Block
from hyena.models.config import ModelConfig
from hyena.models.decoder import Decoder, ModelState, learned_positions
from hyena.models.pooling import pool
from hyena.models.sharding import whole_parameters

# Of the released models: standard deviation of the initial weights, what the filters' window decays to, and the
# frequency of the filters' sines (`w` in the released configs).
INIT_STD = 0.02
WINDOW_SHIFT = 0.05
SINE_FREQUENCY = 10.0


@dataclasses.dataclass(frozen=True)
class HyenaDNAConfig(ModelConfig):
    """What a :class:`HyenaDNA` is built from. The defaults are those of the smallest released model, ``tiny-1k``.

    The released models: ``tiny-1k`` (l_max 1026, d_model 128 or 256, 2 layers), ``small-32k`` (32770, 256, 4),
    ``medium-160k`` (160002, 256, 8), ``medium-450k`` (450002, 256, 8), ``large-1m`` (1000002, 256, 8).

    Args:
        vocab_size: of the tokenizer: 7 special tokens (0 to 6) and A, C, G, T, N (7 to 11).
        l_max: longest input, and the length at which the filters' time reaches 1.
        d_model: D.
        num_layers: number of blocks.
        d_inner: inner width of the MLP, ``4 * D`` if missing.
        order: of the Hyena operators.
        emb_dim: features of the filters' positional encoding, odd.
        filter_width: width of the filters' FFN.
        short_taps: taps of the short convolution.
        dropout: of the residual branches (``resid_dropout``).
        embed_dropout: of the embedding.
        norm_eps: of the LayerNorms.
        pad_vocab_size_multiple: V is the next multiple of this from ``vocab_size`` on.
        residual_in_fp32: keeps the residual stream in float32 (float64 in a float64 model) when the weights are in half
            precision.
        head: None for hidden states, ``"lm"`` for next-token logits, ``"classes"`` for one row of class logits.
        num_classes: of ``head="classes"``.
        pooling: which hidden state the classes are read from: ``"mean"`` over the kept positions, as in the original
            code, or the ``"last"`` kept one, as in the ``-hf`` models.
        head_bias: whether the layer of ``head="classes"`` has a bias; the ``-hf`` models' has none.
        tie_embeddings: the output layer of ``head="lm"`` has the embedding's weight.
        gradient_checkpointing: in training, keep only the blocks' inputs and compute the rest again in the backward
            pass.
    """

    vocab_size: int = 12
    l_max: int = 1026
    d_model: int = 128
    num_layers: int = 2
    d_inner: int | None = None
    order: int = 2
    emb_dim: int = 5
    filter_width: int = 64
    short_taps: int = 3
    dropout: float = 0.0
    embed_dropout: float = 0.1
    norm_eps: float = 1e-5
    pad_vocab_size_multiple: int = 8
    residual_in_fp32: bool = True
    head: str | None = None
    num_classes: int = 2
    pooling: str = "mean"
    head_bias: bool = True
    tie_embeddings: bool = True
    gradient_checkpointing: bool = False

    def __post_init__(self) -> None:
        """Checks what no layer checks.

        Raises:
            ValueError: an unknown head or pooling, or numbers out of range.
        """
        if self.head not in (None, "lm", "classes"):
            raise ValueError(f"head must be None, 'lm' or 'classes', got {self.head!r}")
        if self.pooling not in ("mean", "last"):
            raise ValueError(f"pooling must be 'mean' or 'last', got {self.pooling!r}")
        self._check_sizes("vocab_size", "l_max", "d_model", "num_layers", "pad_vocab_size_multiple", "num_classes")
        if self.d_inner is not None:
            self._check_sizes("d_inner")
        self._check_flags("residual_in_fp32", "head_bias", "tie_embeddings", "gradient_checkpointing")
        self._check_probabilities("dropout", "embed_dropout")
        self._check_numbers("norm_eps")

    @property
    def padded_vocab_size(self) -> int:
        """V."""
        return -(-self.vocab_size // self.pad_vocab_size_multiple) * self.pad_vocab_size_multiple


class HyenaDNA(Decoder):
    """Embedding, pre-norm Hyena blocks, LayerNorm, and a head if the config asks for one.

    Released weights come in with :func:`hyena.checkpoints.hyenadna`. A new model's filters start as this library's
    do, with unit norm, the rest as in the released code (normal, 0.02; ``1 / sqrt(2 num_layers)`` of that into the
    residual stream).

    Args:
        config: sizes and options.
        mixers: one module for each block in place of the operators that the config describes.
    """

    norm: nn.LayerNorm

    def __init__(
        self,
        config: HyenaDNAConfig,
        mixers: Sequence[nn.Module] | None = None,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        at: dict[str, Any] = {"device": device, "dtype": dtype}
        c = self.config = config
        if mixers is None:
            mixers = [_mixer(c, at) for _ in range(c.num_layers)]
        elif len(mixers) != c.num_layers:
            raise ValueError(f"num_layers={c.num_layers} blocks need as many mixers, got {len(mixers)}")
        self.embedding = nn.Embedding(c.padded_vocab_size, c.d_model, **at)
        self.register_module("positions", None)
        self.dropout = nn.Dropout(c.embed_dropout)
        self.blocks = nn.ModuleList(
            Block(
                mixer,
                c.d_model,
                d_inner=c.d_inner,
                dropout=c.dropout,
                mlp="gelu_tanh",
                norm_eps=c.norm_eps,
                **at,
            )
            for mixer in mixers
        )
        self.positions = learned_positions(self.blocks, c.l_max, c.d_model, **at)
        self.norm = nn.LayerNorm(c.d_model, c.norm_eps, **at)
        self.head = None
        if c.head == "lm":
            self.head = nn.Linear(c.d_model, c.padded_vocab_size, bias=False, **at)
            self.tie_embeddings()
        elif c.head == "classes":
            self.head = nn.Linear(c.d_model, c.num_classes, bias=c.head_bias, **at)
        self._reset_own_parameters()

    def tie_embeddings(self) -> None:
        """See :meth:`hyena.models.Decoder.tie_embeddings`; a classifier is never tied."""
        if self.config.head == "lm":
            super().tie_embeddings()

    def reset_parameters(self) -> None:
        """Initialises every parameter again, also those that ``to_empty`` has left without values, sharded or not."""
        for block in cast("list[Block]", self.blocks):
            with whole_parameters(block, write=True):
                block.reset_parameters()
                if isinstance(block.mixer, HyenaOperator):
                    _reset_projections(block.mixer, self.config.num_layers)
        self.norm.reset_parameters()
        self.tie_embeddings()
        self._reset_own_parameters()

    def reset_head(self) -> None:
        """Initialises the head, for training on other classes. A tied output layer stays the embedding."""
        if self.head is not None and self.head.weight is not self.embedding.weight:
            _reset(self.head, INIT_STD)

    @torch.no_grad()
    def _reset_own_parameters(self) -> None:
        for table in (self.embedding, self.positions):
            if table is not None:
                nn.init.normal_(table.weight, std=INIT_STD)
        for block in cast("list[Block]", self.blocks):
            _reset(block.mlp.fc1, INIT_STD)
            _reset(block.mlp.fc2, INIT_STD / math.sqrt(2 * self.config.num_layers))
        self.reset_head()

    def forward(
        self,
        tokens: Tensor,
        mask: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        max_seqlen: int | None = None,
        state: ModelState | None = None,
        *,
        last: bool = False,
    ) -> Tensor:
        """Computes the head's output: see :meth:`hyena.models.Decoder.forward`.

        HyenaDNA's tokenizer pads on the left; its mask is to be passed with padded rows.

        Returns:
            Without a head, hidden states ``(B, L, D)``; next-token logits ``(B, L, V)``; or class logits
            ``(B, num_classes)``. Outputs at positions that are not kept mean nothing.
        """
        if self.config.head != "classes":
            return super().forward(tokens, mask, cu_seqlens, max_seqlen, state, last=last)
        if cu_seqlens is not None:
            raise ValueError("head='classes' gives one row of logits a row of tokens: pad rows, do not pack them")
        if state is not None or last:
            self.check_can_decode(needs_logits=False)
        assert self.head is not None
        return self.head(pool(self.hidden_states(tokens, mask), mask, self.config.pooling))

    def embed(self, tokens: Tensor, at: Tensor | None) -> Tensor:
        """See :meth:`hyena.models.Decoder.embed`."""
        x = super().embed(tokens, at)
        return x.to(torch.promote_types(x.dtype, torch.float32)) if self.config.residual_in_fp32 else x

    def check_can_decode(self, *, needs_logits: bool) -> None:
        """See :meth:`hyena.models.Decoder.check_can_decode`."""
        if self.config.head == "classes":
            raise ValueError(
                "head='classes' looks at the whole sequence at once: build the model with head='lm', or head=None for "
                "hidden states, to go on position by position"
            )
        if needs_logits and self.config.head is None:
            raise ValueError("this model has head=None and gives hidden states: build it with head='lm' to write text")


def _mixer(c: HyenaDNAConfig, at: dict[str, Any]) -> HyenaOperator:
    long_filter = functools.partial(
        HyenaFilter, emb_dim=c.emb_dim, width=c.filter_width, freq=SINE_FREQUENCY, shift=WINDOW_SHIFT
    )
    mixer = HyenaOperator(c.d_model, c.l_max, order=c.order, short_taps=c.short_taps, filter=long_filter, **at)
    _reset_projections(mixer, c.num_layers)
    return mixer


def _reset_projections(mixer: HyenaOperator, num_layers: int) -> None:
    _reset(mixer.in_proj, INIT_STD)
    _reset(mixer.out_proj, INIT_STD / math.sqrt(2 * num_layers))


def _reset(layer: nn.Linear, std: float) -> None:
    nn.init.normal_(layer.weight, std=std)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
