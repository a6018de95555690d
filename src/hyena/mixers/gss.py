"""Gated state spaces: a long convolution of few channels, and a gate that is wider than the model.

Dimensions: B batch, L length, D channels (d_model), H channels of the convolution, I of the gate.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hyena import ops
from hyena.conv.long import FilterFactory, LongConv, Past
from hyena.conv.online import Online
from hyena.filters import DSS
from hyena.mixers._arguments import check_counts
from hyena.mixers.rows import RowMixer
from hyena.mixers.state import State


@dataclasses.dataclass
class GSSState(State):
    """The decoding state of one :class:`GSS`.

    Args:
        memory: what the convolution keeps.
        online: its filter when the state was made.
    """

    memory: list[Tensor]
    online: Online


# The paper's filter: poles that all channels share, without step sizes.
FILTER = partial(DSS, dt=None, log_frequency=True)


class GSS(RowMixer):
    """Gated state space: ``y = W_o (gelu(W_u x) W_g (h * v + d v))`` (Mehta et al. 2022, arXiv 2206.13947, section 3).

    ``v = LN(gelu(W_v x))`` has fewer channels than the model, so that the long convolution is cheap; the gate has more,
    so that the layer needs no MLP beside it. The block's own norm and residual are the model's.

    Args:
        d_model: D.
        l_max: longest row.
        conv_channels: H, at least 2; ``D // 4``, and not less than that, if missing.
        gate_channels: I; ``4 D`` if missing.
        filter: of the convolution; see :class:`hyena.conv.LongConv`. The paper's, if missing.
        causal: no output sees a later input; otherwise the filter is two-sided.
        dropout: of the mixed values before the output projection.
        bias: whether the outer projections have a bias.

    Raises:
        TypeError: arguments of another type.
        ValueError: numbers out of range.
    """

    packs = True
    state_class = GSSState

    def __init__(
        self,
        d_model: int,
        l_max: int,
        *,
        conv_channels: int | None = None,
        gate_channels: int | None = None,
        filter: nn.Module | FilterFactory = FILTER,
        causal: bool = True,
        dropout: float = 0.0,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(d_model, l_max, causal=causal, dropout=dropout, bias=bias)
        inner = max(d_model // 4, 2) if conv_channels is None else conv_channels
        wide = 4 * d_model if gate_channels is None else gate_channels
        check_counts(l_max=l_max, gate_channels=wide)
        check_counts(2, conv_channels=inner)  # the norm of one channel does not depend on the input
        at: dict[str, Any] = {"device": device, "dtype": dtype}
        self.conv_channels, self.gate_channels = inner, wide
        self.in_proj = nn.Linear(d_model, wide + inner, bias=bias, **at)
        self.norm = nn.LayerNorm(inner, **at)
        self.conv = LongConv(inner, l_max, filter=filter, causal=causal, **at)
        self.gate = nn.Linear(inner, wide, bias=False, **at)
        self.out_proj = nn.Linear(wide, d_model, bias=bias, **at)

    def mix(self, u: Tensor, mask: Tensor | None, cu_seqlens: Tensor | None, longest: int, state: Any) -> Tensor:
        """Mixed values ``(B, L, I)``."""
        gate, v = F.gelu(self._project(u, state)).split([self.gate_channels, self.conv_channels], dim=2)
        v = self.norm(v).to(gate.dtype)
        if mask is not None:  # the norm has a bias
            v = torch.where(mask[..., None], v, 0.0)
        if state is None:
            y = self.conv(v, cu_seqlens=cu_seqlens, longest=longest)
        else:
            memory = state.memory[0]
            y = self.conv(v.to(memory.real.dtype), past=Past(state.online, memory, state.position)).to(v.dtype)
        return gate * ops.linear(y, self.gate)

    def new_state(self, batch: int, length: int) -> GSSState:
        online = self.conv.online([self.conv_channels], length)
        return GSSState(0, length, online.allocate(batch), online)

    def extra_repr(self) -> str:
        return (
            f"d_model={self.d_model}, l_max={self.l_max}, conv_channels={self.conv_channels}, "
            f"gate_channels={self.gate_channels}, causal={self.causal}"
        )
