"""H3: a shift state space compares neighbours, a diagonal one remembers, and gates stand before, between and after.

Dimensions: B batch, L length, D channels (d_model), M heads, E channels of a head.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor, nn

from hyena.conv.long import FilterFactory, LongConv, Past
from hyena.conv.online import Online
from hyena.filters import S4D, ShiftSSM
from hyena.mixers._arguments import check_counts
from hyena.mixers.rows import RowMixer
from hyena.mixers.state import State


@dataclasses.dataclass
class H3State(State):
    """The decoding state of one :class:`H3`.

    Args:
        shift_memory, memory: what the two convolutions keep.
        shift_online, online: their filters when the state was made.
    """

    shift_memory: list[Tensor]
    memory: list[Tensor]
    shift_online: Online
    online: Online


class H3(RowMixer):
    """Hungry hungry hippo: two state spaces and three gates (Fu, Dao et al. 2022, arXiv 2212.14052, section 3.1).

    In each head ``y_t = q_t (h * ((s * k) v^T))_t``: keys through the shift filter ``s``, their outer product with the
    values through the filter ``h``, contracted by the queries; both filters beside a trained weight of their input. It
    costs E times as many convolutions as one of D channels; with ``head_dim=1`` each convolution is one op call with
    its gates in it.

    Args:
        d_model: D.
        l_max: longest row.
        head_dim: E, a divisor of D; the released models have 1 and 8.
        shift: the filter ``s``, one for each channel; see :class:`hyena.conv.LongConv`.
        filter: the filter ``h``, one for each head.
        causal: no output sees a later input; otherwise both filters are two-sided.
        dropout: of the mixed values before the output projection.
        bias: whether the projections have a bias.

    Raises:
        TypeError: arguments of another type.
        ValueError: numbers that do not fit together, with what would.
    """

    packs = True
    state_class = H3State

    def __init__(
        self,
        d_model: int,
        l_max: int,
        *,
        head_dim: int = 1,
        shift: nn.Module | FilterFactory = ShiftSSM,
        filter: nn.Module | FilterFactory = S4D,
        causal: bool = True,
        dropout: float = 0.0,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(d_model, l_max, causal=causal, dropout=dropout, bias=bias)
        check_counts(l_max=l_max, head_dim=head_dim)
        if d_model % head_dim != 0:
            raise ValueError(f"d_model={d_model} is not a multiple of head_dim={head_dim}")
        at: dict[str, Any] = {"device": device, "dtype": dtype}
        self.head_dim, self.num_heads = head_dim, d_model // head_dim
        self.in_proj = nn.Linear(d_model, 3 * d_model, bias=bias, **at)
        self.shift = LongConv(d_model, l_max, filter=shift, causal=causal, **at)
        self.conv = LongConv(self.num_heads, l_max, filter=filter, causal=causal, **at)
        self.out_proj = nn.Linear(d_model, d_model, bias=bias, **at)

    def mix(self, u: Tensor, mask: Tensor | None, cu_seqlens: Tensor | None, longest: int, state: Any) -> Tensor:
        """Mixed values ``(B, L, D)``."""
        q, k, v = self._project(u, state).chunk(3, dim=2)
        if mask is not None:  # in_proj has a bias
            k, v = (torch.where(mask[..., None], t, 0.0) for t in (k, v))
        before: dict[str, Any] = {"cu_seqlens": cu_seqlens, "longest": longest}
        after = dict(before)
        if state is not None:
            q, k, v = (t.to(state.memory[0].real.dtype) for t in (q, k, v))
            before = {"past": Past(state.shift_online, state.shift_memory[0], state.position)}
            after = {"past": Past(state.online, state.memory[0], state.position)}
        k = self.shift(k, **before)
        if self.head_dim == 1:
            return self.conv(v, pre=k, post=q, **after)
        q, k, v = (t.unflatten(2, (self.num_heads, self.head_dim)) for t in (q, k, v))
        outer = k[..., :, None] * v[..., None, :]  # (B, L, M, E, E)
        outer = self.conv(outer.flatten(2), **after).view_as(outer)
        return torch.einsum("blme,blmef->blmf", q, outer).flatten(2)

    @property
    def units(self) -> int:
        """Heads."""
        return self.num_heads

    def core(self, units: range) -> H3:
        """The mixing of some heads; see :meth:`hyena.mixers.Mixer.core`."""
        channels = range(units.start * self.head_dim, units.stop * self.head_dim)
        copy: H3 = self._core(3 * len(channels))
        copy.shift, copy.conv = self.shift.narrow(channels, channels), self.conv.narrow(units, units)
        copy.num_heads = len(units)
        return copy

    def new_state(self, batch: int, length: int) -> H3State:
        channels = self.num_heads * self.head_dim
        shift = self.shift.online([channels], length)
        online = self.conv.online([channels * self.head_dim], length)
        return H3State(0, length, shift.allocate(batch), online.allocate(batch), shift, online)

    def extra_repr(self) -> str:
        return f"d_model={self.d_model}, l_max={self.l_max}, head_dim={self.head_dim}, causal={self.causal}"
