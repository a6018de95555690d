"""M2-BERT: Monarch Mixer's language model for masked tokens, sequence mixers and block-diagonal MLPs in turn.

Dimensions: B batch, L length, D channels (d_model), I inner width of the MLP, V vocabulary, N blocks of a matrix.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hyena.filters import PairedFilter
from hyena.mixers import Mixer, MonarchMixer
from hyena.models.config import ModelConfig


class BlockDiagonalLinear(nn.Module):
    """A linear layer whose matrix is block-diagonal: ``N`` blocks side by side cost ``1 / N`` of a dense one.

    Args:
        in_features, out_features: multiples of ``num_blocks``.
        num_blocks: N.
        bias: whether there is one.
    """

    bias: Tensor | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        num_blocks: int,
        *,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if num_blocks < 1 or in_features % num_blocks != 0 or out_features % num_blocks != 0:
            raise ValueError(
                f"in_features={in_features} and out_features={out_features} must be multiples of "
                f"num_blocks={num_blocks}"
            )
        at: dict[str, Any] = {"device": device, "dtype": dtype}
        self.weight = nn.Parameter(torch.empty(num_blocks, out_features // num_blocks, in_features // num_blocks, **at))
        self.register_parameter("bias", nn.Parameter(torch.empty(out_features, **at)) if bias else None)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """As ``nn.Linear`` of one block's size."""
        bound = self.weight.size(2) ** -0.5
        nn.init.uniform_(self.weight, -bound, bound)
        if self.bias is not None:
            nn.init.uniform_(self.bias, -bound, bound)

    def forward(self, x: Tensor) -> Tensor:
        """``(…, in) -> (…, out)``."""
        y = torch.einsum("...ki,koi->...ko", x.unflatten(-1, (self.weight.size(0), -1)), self.weight).flatten(-2)
        return y if self.bias is None else y + self.bias

    def extra_repr(self) -> str:
        blocks, out, into = self.weight.shape
        return f"in_features={blocks * into}, out_features={blocks * out}, num_blocks={blocks}"


class BlockDiagonalGLU(nn.Module):
    """M2's MLP: ``LN(W_o (gelu(a) b) + x)`` with ``a, b`` halves of ``W x``, both matrices block-diagonal.

    Args:
        d_model: D.
        d_inner: I.
        num_blocks: N.
        dropout: of the gated values.
        norm_eps: of the norm.
    """

    def __init__(
        self,
        d_model: int,
        d_inner: int,
        *,
        num_blocks: int = 4,
        dropout: float = 0.0,
        norm_eps: float = 1e-12,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        at: dict[str, Any] = {"device": device, "dtype": dtype}
        self.fc1 = BlockDiagonalLinear(d_model, 2 * d_inner, num_blocks, bias=False, **at)
        self.fc2 = BlockDiagonalLinear(d_inner, d_model, num_blocks, **at)
        self.norm = nn.LayerNorm(d_model, norm_eps, **at)
        self.dropout = nn.Dropout(dropout)

    def reset_parameters(self) -> None:
        """Initialises every parameter again."""
        for part in (self.fc1, self.fc2, self.norm):
            part.reset_parameters()

    def forward(self, x: Tensor) -> Tensor:
        """``(…, D) -> (…, D)``."""
        a, b = self.fc1(x).chunk(2, dim=-1)
        return self.norm(self.fc2(self.dropout(F.gelu(a) * b)) + x)


@dataclasses.dataclass(frozen=True)
class M2BertConfig(ModelConfig):
    """Settings of :class:`M2Bert`; the defaults are M2-BERT base's (80M).

    Args:
        vocab_size: V.
        l_max: longest row.
        d_model: D.
        num_layers: pairs of a mixer and an MLP.
        d_inner: I.
        num_blocks: N, of the MLPs' matrices.
        emb_dim, width, freq: of the filters, see :class:`hyena.filters.HyenaFilter`.
        residual: whether mixers have a convolution of their input; see :class:`hyena.mixers.MonarchMixer`.
        token_types: kinds of tokens, as BERT's two sentences.
        dropout: of embeddings and inside the MLPs.
        norm_eps: of all norms.
    """

    vocab_size: int = 30522
    l_max: int = 128
    d_model: int = 768
    num_layers: int = 12
    d_inner: int = 3072
    num_blocks: int = 4
    emb_dim: int = 5
    width: int = 128
    freq: float = 10.0
    residual: bool = True
    token_types: int = 2
    dropout: float = 0.0
    norm_eps: float = 1e-12

    def __post_init__(self) -> None:
        """Checks the values that no layer checks.

        Raises:
            ValueError: numbers out of range.
        """
        self._check_sizes("vocab_size", "l_max", "d_model", "num_layers", "d_inner", "num_blocks", "token_types")
        self._check_flags("residual")
        self._check_probabilities("dropout")
        self._check_numbers("norm_eps")


class M2Bert(nn.Module):
    """A masked language model without attention: M2-BERT (Fu et al. 2023, arXiv 2310.12109, section 4.1).

    ``x = LN(words + places + kinds)``; then in each layer ``x = GLU(mixer(x))``, the MLP normalising after its residual
    and the mixer without one; logits are ``E LN(gelu(W x + b)) + b'`` with the embedding ``E``.

    Args:
        config: the settings.
        mixers: of the layers, instead of :class:`hyena.mixers.MonarchMixer` as configured.
    """

    def __init__(
        self,
        config: M2BertConfig,
        mixers: Sequence[Mixer] | None = None,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        c = config
        at: dict[str, Any] = {"device": device, "dtype": dtype}
        if mixers is not None and len(mixers) != c.num_layers:
            raise ValueError(f"{len(mixers)} mixers for num_layers={c.num_layers}: pass one for each layer")
        self.config = config
        self.embedding = nn.Embedding(c.vocab_size, c.d_model, **at)
        self.places = nn.Embedding(c.l_max, c.d_model, **at)
        self.kinds = nn.Embedding(c.token_types, c.d_model, **at)
        self.norm = nn.LayerNorm(c.d_model, c.norm_eps, **at)
        filter = partial(PairedFilter, emb_dim=c.emb_dim, width=c.width, freq=c.freq)
        make = partial(MonarchMixer, c.d_model, c.l_max, filter=filter, residual=c.residual, causal=False, **at)
        self.mixers = nn.ModuleList([make() for _ in range(c.num_layers)] if mixers is None else mixers)
        sizes: dict[str, Any] = {"num_blocks": c.num_blocks, "dropout": c.dropout, "norm_eps": c.norm_eps}
        self.mlps = nn.ModuleList(BlockDiagonalGLU(c.d_model, c.d_inner, **sizes, **at) for _ in range(c.num_layers))
        self.dense = nn.Linear(c.d_model, c.d_model, **at)
        self.head_norm = nn.LayerNorm(c.d_model, c.norm_eps, **at)
        self.head_bias = nn.Parameter(torch.empty(c.vocab_size, **at))
        self.dropout = nn.Dropout(c.dropout)
        self._start()

    def reset_parameters(self) -> None:
        """Initialises every parameter again."""
        for part in (*self.mixers, *self.mlps, self.norm, self.head_norm):
            part.reset_parameters()
        self._start()

    def _start(self) -> None:
        for layer in (self.embedding, self.places, self.kinds, self.dense):
            nn.init.normal_(layer.weight, std=0.02)
        nn.init.zeros_(self.dense.bias)
        nn.init.zeros_(self.head_bias)

    def hidden(self, tokens: Tensor, mask: Tensor | None = None, kinds: Tensor | None = None) -> Tensor:
        """Hidden states ``(B, L, D)``; arguments as :meth:`forward`."""
        if tokens.dim() != 2 or tokens.size(1) > self.config.l_max:
            raise ValueError(
                f"expected tokens (B, L) with L up to l_max={self.config.l_max}, got {tuple(tokens.shape)}"
            )
        x = self.embedding(tokens) + self.places.weight[: tokens.size(1)]
        x = x + (self.kinds.weight[0] if kinds is None else self.kinds(kinds))
        x = self.dropout(self.norm(x))
        for mixer, mlp in zip(self.mixers, self.mlps, strict=True):
            x = mlp(mixer(x, mask=mask))
        return x

    def forward(self, tokens: Tensor, mask: Tensor | None = None, kinds: Tensor | None = None) -> Tensor:
        """Logits of each token.

        Args:
            tokens: ``(B, L)`` int64.
            mask: ``(B, L)`` bool, True = keep. The released code ignores its mask and reads padding as text: leave it
                out for what that computes.
            kinds: ``(B, L)`` int64, which kind each token is of; 0 if missing.

        Returns:
            ``(B, L, V)``.
        """
        x = self.head_norm(F.gelu(self.dense(self.hidden(tokens, mask, kinds))))
        return F.linear(x, self.embedding.weight, self.head_bias)
