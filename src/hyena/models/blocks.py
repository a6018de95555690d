"""The parts that whole models share: pre-norm block, MLP, attention to compare with.

Dimensions: B batch, L length, D channels (d_model), I inner width of the MLP, M heads.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hyena.ops._checks import check_row


class MLP(nn.Module):
    """``D -> I -> D`` with a GELU between.

    Args:
        d_model: D.
        d_inner: I.
        bias: whether the two layers have a bias.
        approximate: ``"none"`` for the exact GELU, ``"tanh"`` for GPT-2's (and HyenaDNA's) approximation of it.
    """

    def __init__(
        self,
        d_model: int,
        d_inner: int,
        *,
        bias: bool = True,
        approximate: str = "none",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if approximate not in ("none", "tanh"):
            raise ValueError(f"approximate must be 'none' or 'tanh', got {approximate!r}")
        self.approximate = approximate
        self.fc1 = nn.Linear(d_model, d_inner, bias=bias, device=device, dtype=dtype)
        self.fc2 = nn.Linear(d_inner, d_model, bias=bias, device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        """``(…, D) -> (…, D)``."""
        return self.fc2(F.gelu(self.fc1(x), approximate=self.approximate))

    def extra_repr(self) -> str:
        return f"approximate={self.approximate!r}"


class Block(nn.Module):
    """Pre-norm residual block: ``x + mixer(norm1(x))``, then ``x + mlp(norm2(x))``, each with dropout before the sum.

    Args:
        mixer: ``(B, L, D) -> (B, L, D)``: :class:`hyena.HyenaOperator`, :class:`Attention`, or anything else that is
            called with the keywords given to :meth:`forward`.
        d_model: D.
        d_inner: I, ``4 * D`` if missing.
        dropout: probability of dropping an entry of what is added to the residual stream.
        bias: whether the MLP's layers have a bias.
        approximate: of the GELU, see :class:`MLP`.
        norm_eps: of the two LayerNorms.
    """

    def __init__(
        self,
        mixer: nn.Module,
        d_model: int,
        *,
        d_inner: int | None = None,
        dropout: float = 0.0,
        bias: bool = True,
        approximate: str = "none",
        norm_eps: float = 1e-5,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        at: dict[str, Any] = {"device": device, "dtype": dtype}
        self.norm1 = nn.LayerNorm(d_model, norm_eps, **at)
        self.mixer = mixer
        self.norm2 = nn.LayerNorm(d_model, norm_eps, **at)
        self.mlp = MLP(d_model, 4 * d_model if d_inner is None else d_inner, bias=bias, approximate=approximate, **at)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, **mixing: Any) -> Tensor:
        """``(B, L, D) -> (B, L, D)``; ``mixing`` (``mask``, ``cu_seqlens``, …) goes to the mixer."""
        # A residual stream may be of a higher precision than the weights; what is added to it then leaves it so.
        x = x + self.dropout(self.mixer(self.norm1(x.to(self.norm1.weight.dtype)), **mixing))
        return x + self.dropout(self.mlp(self.norm2(x.to(self.norm2.weight.dtype))))


class Attention(nn.Module):
    """Causal multi-head self-attention by ``F.scaled_dot_product_attention``, called as a Hyena operator is.

    Here so that a model with attention can be compared with the same model with Hyena. Packed rows are kept apart by
    an ``L x L`` mask.

    Args:
        d_model: D.
        num_heads: M; D is a multiple of it.
        dropout: of the attention weights.
        bias: whether the projections have a bias.
    """

    def __init__(
        self,
        d_model: int,
        num_heads: int,
        *,
        dropout: float = 0.0,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if num_heads < 1 or d_model % num_heads != 0:
            raise ValueError(f"d_model={d_model} is not a multiple of num_heads={num_heads}")
        self.num_heads, self.dropout = num_heads, dropout
        self.in_proj = nn.Linear(d_model, 3 * d_model, bias=bias, device=device, dtype=dtype)
        self.out_proj = nn.Linear(d_model, d_model, bias=bias, device=device, dtype=dtype)

    def forward(
        self,
        u: Tensor,
        mask: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        max_seqlen: int | None = None,
    ) -> Tensor:
        """Mixes along the sequence.

        Args:
            u: ``(B, L, D)``.
            mask: ``(B, L)`` bool, True = keep.
            cu_seqlens: ``(rows + 1,)`` offsets of rows packed into one; then ``B = 1``.
            max_seqlen: not needed here; taken so that the call is the same as for Hyena.

        Returns:
            ``(B, L, D)``.

        Raises:
            ValueError: shapes or dtypes that do not fit.
        """
        check_row(u, mask, cu_seqlens)
        q, k, v = (p.unflatten(2, (self.num_heads, -1)).transpose(1, 2) for p in self.in_proj(u).chunk(3, dim=2))
        allowed = _allowed(u.size(1), mask, cu_seqlens, u.device)
        y = F.scaled_dot_product_attention(
            q, k, v, attn_mask=allowed, dropout_p=self.dropout if self.training else 0.0, is_causal=allowed is None
        )  # (B, M, L, D/M)
        return self.out_proj(y.transpose(1, 2).flatten(2))

    def extra_repr(self) -> str:
        return f"num_heads={self.num_heads}, dropout={self.dropout}"


def row_starts(cu_seqlens: Tensor, length: int) -> Tensor:
    """Where the packed row of each position starts: ``(L,)``."""
    at = torch.arange(length, device=cu_seqlens.device)
    row = torch.searchsorted(cu_seqlens.to(at.dtype), at, right=True) - 1
    return cu_seqlens.to(at.dtype)[row]


def _allowed(length: int, mask: Tensor | None, cu_seqlens: Tensor | None, device: torch.device) -> Tensor | None:
    """Which key each query may see, ``(B, 1, L, L)`` or ``(L, L)``; None if it is every earlier one."""
    if mask is None and cu_seqlens is None:
        return None
    allowed = torch.ones(length, length, dtype=torch.bool, device=device).tril()
    if cu_seqlens is not None:
        start = row_starts(cu_seqlens, length)
        allowed = allowed & (start[:, None] == start)
    if mask is not None:
        # A padded query may see itself: a row of the softmax with nothing in it would be NaN.
        itself = torch.eye(length, dtype=torch.bool, device=device)
        allowed = (allowed & mask[:, None, None, :]) | itself
    return allowed
