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
from torch.utils.checkpoint import checkpoint

from hyena.filters import HyenaFilter
from hyena.mixers.hyena import HyenaOperator
from hyena.mixers.masks import keep_from_tokenizer
from hyena.models.blocks import Block
from hyena.models.config import ModelConfig
from hyena.models.decoder import Decoder

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
        n_layer: number of blocks.
        d_inner: inner width of the MLP, ``4 * D`` if missing.
        order: of the Hyena operators.
        emb_dim: features of the filters' positional encoding, odd.
        filter_order: width of the filters' FFN.
        short_filter_order: taps of the short convolution.
        dropout: of the residual branches (``resid_dropout``).
        embed_dropout: of the embedding.
        norm_eps: of the LayerNorms.
        pad_vocab_size_multiple: V is the next multiple of this from ``vocab_size`` on.
        residual_in_fp32: keeps the residual stream in float32 (float64 in a float64 model) when the weights are in half
            precision.
        head: None for hidden states, ``"lm"`` for next-token logits, ``"classes"`` for one row of class logits, from
            the mean of the hidden states.
        n_classes: of ``head="classes"``.
        tie_embeddings: the output layer of ``head="lm"`` has the embedding's weight.
        gradient_checkpointing: in training, keep only the blocks' inputs and compute the rest again in the backward
            pass.
    """

    vocab_size: int = 12
    l_max: int = 1026
    d_model: int = 128
    n_layer: int = 2
    d_inner: int | None = None
    order: int = 2
    emb_dim: int = 5
    filter_order: int = 64
    short_filter_order: int = 3
    dropout: float = 0.0
    embed_dropout: float = 0.1
    norm_eps: float = 1e-5
    pad_vocab_size_multiple: int = 8
    residual_in_fp32: bool = True
    head: str | None = None
    n_classes: int = 2
    tie_embeddings: bool = True
    gradient_checkpointing: bool = False

    def __post_init__(self) -> None:
        """Checks what no layer checks.

        Raises:
            ValueError: an unknown head, or a size below 1.
        """
        if self.head not in (None, "lm", "classes"):
            raise ValueError(f"head must be None, 'lm' or 'classes', got {self.head!r}")
        self._check_sizes("vocab_size", "l_max", "d_model", "n_layer", "pad_vocab_size_multiple", "n_classes")

    @property
    def padded_vocab_size(self) -> int:
        """V."""
        return -(-self.vocab_size // self.pad_vocab_size_multiple) * self.pad_vocab_size_multiple


class HyenaDNA(Decoder):
    """Embedding, pre-norm Hyena blocks, LayerNorm, and a head if the config asks for one.

    Released weights come in with :func:`hyena.checkpoints.hyenadna`. A new model's filters start as this library's
    do, with unit norm, the rest as in the released code (normal, 0.02; ``1 / sqrt(2 n_layer)`` of that into the
    residual stream).

    Args:
        config: sizes and options.
        mixers: one module for each block in place of the operators that the config describes.
    """

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
            mixers = [_mixer(c, at) for _ in range(c.n_layer)]
        elif len(mixers) != c.n_layer:
            raise ValueError(f"n_layer={c.n_layer} blocks need as many mixers, got {len(mixers)}")
        self.embedding = nn.Embedding(c.padded_vocab_size, c.d_model, **at)
        self.dropout = nn.Dropout(c.embed_dropout)
        self.blocks = nn.ModuleList(
            Block(
                mixer,
                c.d_model,
                d_inner=c.d_inner,
                dropout=c.dropout,
                approximate="tanh",
                norm_eps=c.norm_eps,
                **at,
            )
            for mixer in mixers
        )
        self.norm = nn.LayerNorm(c.d_model, c.norm_eps, **at)
        self.head = None
        if c.head == "lm":
            self.head = nn.Linear(c.d_model, c.padded_vocab_size, bias=False, **at)
            self.tie_embeddings()
        elif c.head == "classes":
            self.head = nn.Linear(c.d_model, c.n_classes, **at)
        self._reset_own_parameters()

    def tie_embeddings(self) -> None:
        """Makes the output layer's weight the embedding's, if the config says so; again after what separates them."""
        if self.config.head == "lm" and self.config.tie_embeddings and self.head is not None:
            self.head.weight = self.embedding.weight

    def reset_head(self) -> None:
        """Initialises the head, for training on other classes. A tied output layer stays the embedding."""
        if self.head is not None and self.head.weight is not self.embedding.weight:
            _reset(self.head, INIT_STD)

    @torch.no_grad()
    def _reset_own_parameters(self) -> None:
        nn.init.normal_(self.embedding.weight, std=INIT_STD)
        for block in cast("list[Block]", self.blocks):
            _reset(block.mlp.fc1, INIT_STD)
            _reset(block.mlp.fc2, INIT_STD / math.sqrt(2 * self.config.n_layer))
        self.reset_head()

    def forward(
        self,
        tokens: Tensor,
        mask: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        max_seqlen: int | None = None,
    ) -> Tensor:
        """What the head makes of a sequence.

        Args:
            tokens: ``(B, L)`` integers below ``vocab_size``.
            mask: ``(B, L)``, True or 1 = keep: a tokenizer's ``attention_mask``. HyenaDNA's tokenizer pads on the left;
                with the mask a padded row gives what it gives alone, on either side.
            cu_seqlens: ``(rows + 1,)`` offsets of rows packed into one; then ``B = 1``.
            max_seqlen: the longest packed row, see :meth:`hyena.HyenaOperator.forward`.

        Returns:
            Without a head, hidden states ``(B, L, D)``; next-token logits ``(B, L, V)``; or class logits
            ``(B, n_classes)``. What comes out at positions that are not kept means nothing.

        Raises:
            ValueError: an input longer than ``l_max``, or shapes that do not fit.
        """
        x = self.hidden_states(tokens, mask, cu_seqlens, max_seqlen)
        if self.head is None:
            return x
        if self.config.head == "classes":
            if cu_seqlens is not None:
                raise ValueError(
                    "head='classes' gives one row of logits for each row of tokens: pad rows, do not pack them"
                )
            x = _mean(x, mask)
        return self.head(x)

    def hidden_states(
        self,
        tokens: Tensor,
        mask: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        max_seqlen: int | None = None,
    ) -> Tensor:
        """The normalised output of the last block ``(B, L, D)``, whatever the head; arguments as in :meth:`forward`."""
        if tokens.dim() != 2:
            raise ValueError(f"tokens must be (B, L), got {tuple(tokens.shape)}")
        keep = None if mask is None else keep_from_tokenizer(mask, tokens.shape)
        mixing = {"mask": keep, "cu_seqlens": cu_seqlens, "max_seqlen": max_seqlen}
        x = self.dropout(self.embed(tokens, None))  # (B, L, D)
        for block in self.blocks:
            if self.config.gradient_checkpointing and self.training:
                x = checkpoint(functools.partial(block, **mixing), x, use_reentrant=False)
            else:
                x = block(x, **mixing)
        return self.norm(x.to(self.norm.weight.dtype))

    def embed(self, tokens: Tensor, at: Tensor | None) -> Tensor:
        """See :meth:`hyena.models.Decoder.embed`."""
        x = self.embedding(tokens)
        return x.to(torch.promote_types(x.dtype, torch.float32)) if self.config.residual_in_fp32 else x

    def check_decodes(self, *, logits: bool) -> None:
        """See :meth:`hyena.models.Decoder.check_decodes`."""
        if self.config.head == "classes":
            raise ValueError(
                "head='classes' looks at the whole sequence at once: build the model with head='lm', or head=None for "
                "hidden states, to go on position by position"
            )
        if logits and self.config.head is None:
            raise ValueError("this model has head=None and gives hidden states: build it with head='lm' to write text")


def _mixer(c: HyenaDNAConfig, at: dict[str, Any]) -> HyenaOperator:
    long_filters = HyenaFilter(
        c.d_model,
        c.l_max,
        c.order - 1,
        emb_dim=c.emb_dim,
        width=c.filter_order,
        freq=SINE_FREQUENCY,
        shift=WINDOW_SHIFT,
        **at,
    )
    mixer = HyenaOperator(
        c.d_model, c.l_max, order=c.order, short_filter_order=c.short_filter_order, filter=long_filters, **at
    )
    _reset(mixer.in_proj, INIT_STD)
    _reset(mixer.out_proj, INIT_STD / math.sqrt(2 * c.n_layer))
    return mixer


def _reset(layer: nn.Linear, std: float) -> None:
    nn.init.normal_(layer.weight, std=std)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


def _mean(x: Tensor, mask: Tensor | None) -> Tensor:
    """Mean over the kept positions: ``(B, L, D) -> (B, D)``."""
    if mask is None:
        return x.mean(1)
    keep = mask.bool()[..., None]
    return torch.where(keep, x, torch.zeros((), dtype=x.dtype, device=x.device)).sum(1) / keep.sum(1).clamp_min(1)
