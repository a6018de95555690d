"""Linear attention: attention whose weights are products of features, so that keys and values sum up in a state.

Dimensions: B batch, L length, D channels (d_model), M heads, R features of a head, E channels of a head, S positions of
a chunk.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hyena import ops
from hyena.filters.base import is_number
from hyena.mixers._arguments import check_counts, check_flags, heads_of
from hyena.mixers._scan import fill_up
from hyena.mixers.rows import RowMixer
from hyena.mixers.state import State


def _elu(x: Tensor) -> Tensor:
    if torch.compiler.is_compiling():
        # The gradient of elu lies in memory as what it multiplies, and tracing takes it to lie as x does (torch 2.13).
        return torch.where(x > 0, x, x.clamp_max(0).expm1()) + 1
    return F.elu(x) + 1


def _softmax(x: Tensor) -> Tensor:
    return torch.cat([x.softmax(-1), (-x).softmax(-1)], dim=-1)


def _taylor(x: Tensor) -> Tensor:
    x = x * x.size(-1) ** -0.25
    square = (x[..., :, None] * x[..., None, :]).flatten(-2) * math.sqrt(0.5)
    return torch.cat([torch.ones_like(x[..., :1]), x, square], dim=-1)


# Features of a head's queries and keys, (…, E) -> (…, R), all of them without a negative product.
FEATURES: dict[str, Callable[[Tensor], Tensor]] = {
    "elu": _elu,
    "relu": F.relu,
    "softmax": _softmax,
    "taylor": _taylor,
}


@dataclasses.dataclass
class LinearAttentionState(State):
    """What one :class:`LinearAttention` has summed up.

    Args:
        sums: ``(B, M, R, E + 1)``, features of keys times values, and in the last column the features.
    """

    sums: Tensor


class LinearAttention(RowMixer):
    """Attention in linear time (Katharopoulos et al. 2020, arXiv 2006.16236): ``y_t = f(q_t) S_t / (f(q_t) z_t)``.

    ``S_t`` sums ``f(k_s) v_s^T``, ``z_t`` sums ``f(k_s)``, over ``s <= t``, in each head (equations 9, 18, 19). Rows
    are cut into chunks: inside one, products of features are an ``S x S`` matrix; what came before it is in the sums.
    So time and memory grow with L, and a step costs the same anywhere.

    Args:
        d_model: D.
        l_max: longest row; None for any length, and then states need a ``max_length``.
        num_heads: M, a divisor of D. If missing, heads have 64 channels, or there is one where 64 does not divide D.
        feature_map: ``f``, of the last dimension: "elu" (``elu(x) + 1``), "relu", "softmax" (of ``x`` beside that of
            ``-x``, as Hedgehog's, arXiv 2402.04347), "taylor" (``1, x, x x / 2``: exp to second order, arXiv
            2402.18668, with ``E ** 2 + E + 1`` features), or a function or module with products that are not negative.
        normalize: divide by ``f(q_t) z_t``.
        causal: no output sees a later input.
        dropout: of the mixed values before the output projection.
        bias: whether the projections have a bias.
        chunk: S.
        eps: added to the divisor.

    Raises:
        TypeError: arguments of another type.
        ValueError: numbers that do not fit together, with what would.
    """

    needs_positions = True
    state_class = LinearAttentionState

    def __init__(
        self,
        d_model: int,
        l_max: int | None = None,
        *,
        num_heads: int | None = None,
        feature_map: str | Callable[[Tensor], Tensor] = "elu",
        normalize: bool = True,
        causal: bool = True,
        dropout: float = 0.0,
        bias: bool = True,
        chunk: int = 64,
        eps: float = 1e-6,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(d_model, l_max, causal=causal, dropout=dropout, bias=bias)
        check_counts(chunk=chunk)
        check_flags(normalize=normalize)
        if not callable(feature_map) and feature_map not in FEATURES:
            raise ValueError(f"feature_map must be a function or one of {sorted(FEATURES)}, got {feature_map!r}")
        if not is_number(eps) or not 0 <= eps < math.inf:
            raise ValueError(f"eps must be a finite number, not negative, got {eps!r}")
        at: dict[str, Any] = {"device": device, "dtype": dtype}
        self.num_heads = heads_of(d_model, num_heads)
        self.head_dim = d_model // self.num_heads
        self.feature_map, self.normalize, self.chunk, self.eps = feature_map, normalize, chunk, eps
        self.in_proj = nn.Linear(d_model, 3 * d_model, bias=bias, **at)
        self.out_proj = nn.Linear(d_model, d_model, bias=bias, **at)

    @property
    def units(self) -> int:
        """Heads."""
        return self.num_heads

    def core(self, units: range) -> LinearAttention:
        """The attention of some heads; see :meth:`hyena.mixers.Mixer.core`."""
        copy: LinearAttention = self._core(3 * len(units) * self.head_dim)
        copy.num_heads = len(units)
        return copy

    def features(self, x: Tensor) -> Tensor:
        """``f`` of queries or keys, ``(…, E)`` to ``(…, R)``."""
        return FEATURES[self.feature_map](x) if isinstance(self.feature_map, str) else self.feature_map(x)

    def mix(self, u: Tensor, mask: Tensor | None, cu_seqlens: Tensor | None, longest: int, state: Any) -> Tensor:
        """Mixed values ``(B, L, D)``."""
        z = ops.linear(u, self.in_proj)
        with ops.without_autocast(u.device):
            z = z.to(ops.compute_dtype(z))
            q, k, v = (p.unflatten(2, (self.num_heads, -1)).transpose(1, 2) for p in z.chunk(3, dim=2))
            q, k = self.features(q), self.features(k)  # (B, M, L, R)
            if mask is not None:
                k = torch.where(mask[:, None, :, None], k, 0.0)
            v = torch.cat([v, torch.ones_like(v[..., :1])], dim=-1)  # the sums of features are one more value
            if self.causal:
                y, sums = self._causal(q, k, v, None if state is None else state.sums)
                if state is not None:
                    state.sums.copy_(sums)
            else:
                y = q @ (k.transpose(2, 3) @ v)
            y = y[..., :-1] / (y[..., -1:] + self.eps) if self.normalize else y[..., :-1]
            return y.transpose(1, 2).flatten(2)

    def _causal(self, q: Tensor, k: Tensor, v: Tensor, before: Tensor | None) -> tuple[Tensor, Tensor]:
        """``sum_{s <= t} (q_t k_s) v_s`` for every t, and the sums ``k^T v`` of all."""
        length, size = q.size(2), min(self.chunk, q.size(2))
        q, k, v = (_chunks(x, size) for x in (q, k, v))  # (B, M, chunks, S, …)
        own = k.transpose(3, 4) @ v  # (B, M, chunks, R, E + 1)
        sums = own.cumsum(2)
        if before is not None:
            sums = sums + before[:, :, None]
        # Sums before each chunk, shifted and not subtracted: a later value may be so large that it does not cancel.
        first = torch.zeros_like(own[:, :, 0]) if before is None else before
        past = torch.cat([first[:, :, None], sums[:, :, :-1]], dim=2)
        y = (q @ k.transpose(3, 4)).tril() @ v + q @ past
        return y.flatten(2, 3)[:, :, :length], sums[:, :, -1]

    def new_state(self, batch: int, length: int) -> LinearAttentionState:
        weight = self.in_proj.weight
        each, dtype = self.head_dim, ops.compute_dtype(weight)
        with ops.without_autocast(weight.device):
            features = self.features(torch.zeros(1, each, dtype=dtype, device=weight.device)).size(-1)
        shape = (batch, self.num_heads, features, each + 1)
        return LinearAttentionState(0, length, torch.zeros(shape, dtype=dtype, device=weight.device))

    def extra_repr(self) -> str:
        return f"d_model={self.d_model}, l_max={self.l_max}, num_heads={self.num_heads}, causal={self.causal}"


def _chunks(x: Tensor, size: int) -> Tensor:
    """``(B, M, L, C)`` as ``(B, M, chunks, size, C)``, zeros at the end."""
    return fill_up(x, size, dim=2).unflatten(2, (-1, size))
