"""Monarch Mixer's sequence mixer: a Hyena of order 2, two-sided, with a long convolution of its input beside it.

Dimensions: B batch, L length, D channels (d_model).
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor, nn

from hyena.conv.long import FilterFactory, LongConv, Past
from hyena.conv.online import Online
from hyena.conv.short import ShortConv
from hyena.filters import PairedFilter
from hyena.mixers._arguments import check_counts, check_flags
from hyena.mixers.rows import RowMixer
from hyena.mixers.state import State


@dataclasses.dataclass
class MonarchMixerState(State):
    """The decoding state of one :class:`MonarchMixer`.

    Args:
        short: ``(B, taps - 1, 3 D)``, the last inputs of the short convolution.
        memory: of the gated convolution and, if there is one, of the residual one.
        online: their filters when the state was made, of the first and of the second.
        residual_online: see ``online``.
    """

    short: Tensor
    memory: list[Tensor]
    online: Online
    residual_online: Online | None


class MonarchMixer(RowMixer):
    """The sequence mixer of Monarch Mixer, M2: ``y = W_o (x2 (h * (x1 v)) + g * u)``.

    Source: Fu et al. 2023, arXiv 2310.12109, section 4. ``x1, x2, v`` are a projection of ``u`` after a short causal
    convolution, as Hyena's of order 2; beside it a second long filter ``g`` convolves the input itself. Both filters
    have a weight of their input. M2's models are two-sided, with an FFN for each direction
    (:class:`hyena.filters.PairedFilter`). Their other half, an MLP of block-diagonal matrices, is
    :class:`hyena.models.BlockDiagonalGLU`.

    Args:
        d_model: D.
        l_max: longest row.
        filter: both filters; see :class:`hyena.conv.LongConv`.
        residual: whether there is ``g``.
        short_taps: taps of the short convolution.
        causal: no output sees a later input; otherwise the filters are two-sided.
        dropout: of the mixed values before the output projection.
        bias: whether the projections have a bias.

    Raises:
        TypeError: arguments of another type.
        ValueError: numbers out of range.
    """

    packs = True
    state_class = MonarchMixerState

    def __init__(
        self,
        d_model: int,
        l_max: int,
        *,
        filter: nn.Module | FilterFactory = PairedFilter,
        residual: bool = True,
        short_taps: int = 3,
        causal: bool = True,
        dropout: float = 0.0,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(d_model, l_max, causal=causal, dropout=dropout, bias=bias)
        check_counts(l_max=l_max, short_taps=short_taps)
        check_flags(residual=residual)
        at: dict[str, Any] = {"device": device, "dtype": dtype}
        self.in_proj = nn.Linear(d_model, 3 * d_model, bias=bias, **at)
        self.short = ShortConv(3 * d_model, short_taps, **at)
        self.conv = LongConv(d_model, l_max, filter=filter, causal=causal, **at)
        self.residual = LongConv(d_model, l_max, filter=filter, causal=causal, **at) if residual else None
        self.out_proj = nn.Linear(d_model, d_model, bias=bias, **at)

    def mix(self, u: Tensor, mask: Tensor | None, cu_seqlens: Tensor | None, longest: int, state: Any) -> Tensor:
        """Mixed values ``(B, L, D)``."""
        z = self._project(u, state)
        if state is None:
            before, after, v = self.short(z, mask, cu_seqlens).chunk(3, dim=2)
            y = self.conv(v, pre=before, post=after, cu_seqlens=cu_seqlens, longest=longest)
            return y if self.residual is None else y + self.residual(u, cu_seqlens=cu_seqlens, longest=longest)
        before, after, v = self.short(z, mask, memory=state.short).chunk(3, dim=2)
        y = self.conv(v, pre=before, post=after, past=Past(state.online, state.memory[0], state.position))
        if self.residual is None:
            return y
        past = Past(state.residual_online, state.memory[1], state.position)
        return y + self.residual(u.to(y.dtype), past=past)

    def new_state(self, batch: int, length: int) -> MonarchMixerState:
        convs = [conv for conv in (self.conv, self.residual) if conv is not None]
        online = [conv.online([self.d_model], length) for conv in convs]
        memory = [memory for each in online for memory in each.allocate(batch)]
        second = online[1] if len(online) > 1 else None
        return MonarchMixerState(0, length, self.short.allocate(batch), memory, online[0], second)

    def extra_repr(self) -> str:
        return f"d_model={self.d_model}, l_max={self.l_max}, causal={self.causal}"
